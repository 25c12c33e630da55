//! `export-base`: a checkpoint of a full-parameter stage as a base that jobs can start from, with the facts that made it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use crescendo_core::spec::{AdapterSpec, JobSpec};
use crescendo_dataset::checkpoint::{EMA_FILE, HISTORY_FILE, MODEL_FILE, SPEC_FILE, STATE_FILE};
use crescendo_model::tch::Kind;
use crescendo_model::weights::{TensorFile, TensorMap, published_strings, save};

use crate::report::history;

/// Steps that the reported loss is averaged over.
const LOSS_WINDOW: usize = 200;

/// Flags of `export-base`.
#[derive(Debug, Args)]
#[command(
    after_help = "Takes the moving average of the weights where the stage kept one (emaDecay).\n\nExample:\n  \
                        crescendo-workbench export-base --checkpoint .crescendo/objects/jobs/JOB/base/checkpoints/STEP \
                        --out assets/nano/base.safetensors"
)]
pub struct ExportBaseArgs {
    /// Folder of the checkpoint
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,
    /// File to write, bf16; the facts go beside it, with the ending .json
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Runs `export-base`.
pub fn run(args: &ExportBaseArgs) -> Result<()> {
    let spec: JobSpec = read_json(&args.checkpoint.join(SPEC_FILE))?;
    let state: serde_json::Value = read_json(&args.checkpoint.join(STATE_FILE))?;
    let stage_name = state["stage"].as_str().context("it names no stage")?;
    let stage =
        spec.stages.iter().find(|stage| stage.name == stage_name).context("the spec lacks the stage")?;
    ensure!(stage.train.adapter == AdapterSpec::None, "stage {stage_name} trained a LoRA, not a base");

    let averaged = args.checkpoint.join(EMA_FILE);
    let source = if averaged.exists() { averaged } else { args.checkpoint.join(MODEL_FILE) };
    let tensors: TensorMap = TensorFile::open(&source)?
        .all()?
        .into_iter()
        .map(|(name, tensor)| Ok((name, tensor.f_to_kind(Kind::BFloat16)?)))
        .collect::<Result<_>>()?;
    save(&args.out, &tensors, &published_strings())?;

    let path = args.checkpoint.join(HISTORY_FILE);
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let steps = history::parse(&text).with_context(|| format!("read {}", path.display()))?;
    let window = |records: &[history::StepRecord]| {
        // Skipped steps have no loss.
        let losses: Vec<f64> =
            records.iter().map(|record| record.loss).filter(|loss| loss.is_finite()).collect();
        losses.iter().sum::<f64>() / losses.len().max(1) as f64
    };
    let losses: BTreeMap<u64, f64> = steps
        .chunks(LOSS_WINDOW)
        .filter_map(|chunk| Some((chunk.last()?.step, (window(chunk) * 1e4).round() / 1e4)))
        .collect();
    let facts = serde_json::json!({
        "spec": spec,
        "stage": stage_name,
        "seed": spec.seed,
        "steps": steps.len(),
        "seconds": steps.iter().map(|record| record.seconds).sum::<f64>().round(),
        "averaged": source.ends_with(EMA_FILE),
        "mean_loss_until_step": losses,
        "parameters": tensors.values().map(|tensor| tensor.numel()).sum::<usize>(),
    });
    let facts_path = args.out.with_extension("json");
    std::fs::write(&facts_path, serde_json::to_vec_pretty(&facts)?)
        .with_context(|| format!("write {}", facts_path.display()))
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("parse {}", path.display()))
}
