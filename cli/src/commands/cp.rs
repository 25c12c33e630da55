//! `crescendo cp`: a trained file out of the object store.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use crescendo_dataset::checkpoint::ADAPTER_FILE;
use crescendo_proto::v1::{Checkpoint, CheckpointFile};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::checkpoints;
use crate::args::{Common, CpArgs, LoraFormat, Output};
use crate::artifact::choice;
use crate::artifact::fetch::fetch;
use crate::artifact::target::Target;
use crate::connect::Controller;
use crate::failure::Failure;
use crate::show::{self, words};
use crate::up::binaries;

/// Names in the scratch folder.
const REGISTERED: &str = "registered.safetensors";
const CONVERTED: &str = "converted.safetensors";
/// Between two looks at how much has come.
const LOOK_AT_SIZE: Duration = Duration::from_millis(200);
/// Files smaller than this need no bar.
const LARGE_BYTES: u64 = 32 << 20;

pub async fn run(common: &Common, args: &CpArgs) -> Result<(), Failure> {
    let target = Target::prepare(&args.file, args.force)?;
    let converter = match args.format {
        LoraFormat::Published => None,
        LoraFormat::Comfyui | LoraFormat::Diffusers => Some(binaries::find("crescendo-workbench")?),
    };
    tokio::select! {
        copied = copy(common, args, target, converter) => copied,
        // What had come goes with the target.
        _ = tokio::signal::ctrl_c() => Err(Failure::Interrupted),
    }
}

async fn copy(
    common: &Common,
    args: &CpArgs,
    target: Target,
    converter: Option<PathBuf>,
) -> Result<(), Failure> {
    let controller = Controller::find(common).await?;
    let registered = checkpoints::fetch(&controller, common, &args.of.job, "").await?;
    let checkpoint = choice::choose(&args.of, &registered, args.checkpoint)?;
    let file = choice::trained_file(checkpoint)?;
    if converter.is_some() && file.name != ADAPTER_FILE {
        return Err(Failure::Usage(format!(
            "--format: stage {} trains all weights, and only LoRAs have other formats",
            checkpoint.stage
        )));
    }
    let raw = target.scratch(REGISTERED);
    let bar = bar(file.size_bytes);
    let coming = fetch(&controller, common, args.object_store.as_deref(), checkpoint, file, &raw);
    let came = tokio::select! {
        came = coming => came,
        never = follow(&bar, &raw) => match never {},
    };
    bar.finish_and_clear();
    came?;
    let made = match &converter {
        None => raw,
        Some(program) => {
            let made = target.scratch(CONVERTED);
            convert(program, &raw, args.format, &made).await?;
            made
        }
    };
    let path = target.path().to_owned();
    target.fill(&made)?;
    match common.output {
        Output::Json => show::json::print(&as_json(&path, args.format, checkpoint, file)),
        Output::Table => {
            let kind = if file.name == ADAPTER_FILE { "LoRA" } else { "weights" };
            let format = match args.format {
                LoraFormat::Published => String::new(),
                other => format!(", converted for {}", other.word()),
            };
            show::outln(format_args!(
                "{}: {kind} of stage {}, step {}, {}, SHA-256 verified{format}",
                path.display(),
                words::one_line(&checkpoint.stage),
                checkpoint.step,
                words::bytes(file.size_bytes)
            ));
        }
    }
    Ok(())
}

/// A bar on a terminal, for a file that takes its time.
fn bar(size_bytes: u64) -> ProgressBar {
    if size_bytes < LARGE_BYTES {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(size_bytes);
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {bytes}/{total_bytes} {bytes_per_sec}") {
        bar.set_style(style);
    }
    bar
}

async fn follow(bar: &ProgressBar, target: &Path) -> std::convert::Infallible {
    loop {
        tokio::time::sleep(LOOK_AT_SIZE).await;
        bar.set_position(target.metadata().map_or(0, |found| found.len()));
    }
}

/// Has the workbench write a published adapter in another format.
async fn convert(program: &Path, from: &Path, format: LoraFormat, to: &Path) -> Result<(), Failure> {
    let done = tokio::process::Command::new(program)
        .args(["lora", "convert", "--to", format.word(), "--out"])
        .args([to, from])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(Failure::from_error(format!("start {}", program.display())))?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr);
        return Err(Failure::other(format!(
            "the LoRA cannot be converted for {}: {}",
            format.word(),
            words::one_line(said.trim())
        )));
    }
    Ok(())
}

fn as_json(path: &Path, format: LoraFormat, checkpoint: &Checkpoint, file: &CheckpointFile) -> Value {
    json!({
        "file": path,
        "jobId": checkpoint.job_id,
        "stage": checkpoint.stage,
        "step": checkpoint.step,
        "name": file.name,
        "sizeBytes": file.size_bytes,
        "sha256": file.sha256,
        "format": format.word(),
    })
}
