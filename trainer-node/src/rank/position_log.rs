//! A record of what was trained when, for tests that hold a run to its promises: one line a step.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

use serde_json::json;

use super::plan::RankPlan;

/// One rank's file, `<job>-<stage>-g<generation>-r<rank>.jsonl`.
#[derive(Debug)]
pub struct PositionLog {
    file: File,
}

impl PositionLog {
    pub fn create(folder: &Path, plan: &RankPlan) -> io::Result<Self> {
        let attempt = &plan.attempt;
        let name =
            format!("{}-{}-g{}-r{}.jsonl", attempt.job_id, attempt.stage, attempt.generation, plan.gang.rank);
        Ok(Self { file: File::create(folder.join(name))? })
    }

    /// Notes a step that is trained: its positions, each with its index in the pair log. Written at once, as one piece,
    /// so that a kill leaves whole lines.
    pub fn note(&mut self, step: u64, positions: &[(u64, u64)]) -> io::Result<()> {
        let mut line = json!({ "step": step, "positions": positions }).to_string();
        line.push('\n');
        self.file.write_all(line.as_bytes())
    }
}
