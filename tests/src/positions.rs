//! Which steps were trained, by which generation: what rank 0 notes where `CRESCENDO_POSITION_LOG` says.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

/// Steps that rank 0 of each generation of a job's first stage has trained, by generation.
pub fn trained(folder: &Path, job_id: &str) -> Result<BTreeMap<u64, Vec<u64>>> {
    trained_by(folder, job_id, 0)
}

/// The same of another rank.
pub fn trained_by(folder: &Path, job_id: &str, rank: u32) -> Result<BTreeMap<u64, Vec<u64>>> {
    let mut steps = BTreeMap::new();
    for generation in 1..=9 {
        let file = folder.join(format!("{job_id}-stage-1-g{generation}-r{rank}.jsonl"));
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        let step = |line: &str| -> Result<u64> {
            let line: serde_json::Value = serde_json::from_str(line)?;
            line["step"].as_u64().context("a line has no step")
        };
        steps.insert(generation, text.lines().map(step).collect::<Result<_>>()?);
    }
    Ok(steps)
}

/// Every one of `steps` steps once, in two generations, the second from where the first one left off.
pub fn no_step_twice(folder: &Path, job_id: &str, steps: u64) -> Result<()> {
    let found = trained(folder, job_id)?;
    ensure!(found.len() == 2, "not handed over once: {found:?}");
    let all: Vec<u64> = found.into_values().flatten().collect();
    ensure!(all == (0..steps).collect::<Vec<_>>(), "steps are missing or trained twice: {all:?}");
    Ok(())
}
