//! `lora convert`: an adapter under the names of another loader.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Subcommand, ValueEnum};
use crescendo_dataset::whole_file::folder_of;
use crescendo_model::lora_export::{LoraFormat, convert};
use crescendo_model::lora_names::published_tensors;
use crescendo_model::tch::Kind;
use crescendo_model::weight_files::WeightFiles;
use crescendo_model::weights::{published_strings, save};

/// Work with adapter files.
#[derive(Debug, Args)]
pub struct LoraArgs {
    #[command(subcommand)]
    command: LoraCommand,
}

#[derive(Debug, Subcommand)]
enum LoraCommand {
    Convert(ConvertArgs),
}

/// Write an adapter for another loader, in another dtype or with another weight.
#[derive(Debug, Args)]
#[command(
    after_help = "published: UNO's own naming; ComfyUI reads it too if the last double and single block are in it\n\
                        comfyui: kohya's naming, with alpha\n\
                        diffusers: PEFT's naming, queries, keys and values apart\n\n\
                        Example:\n  crescendo lora convert dit_lora.safetensors --to diffusers --out uno.safetensors"
)]
struct ConvertArgs {
    /// Adapter: a file or a folder with one, under the names of UNO, XLabs, kohya, ComfyUI, PEFT or diffusers
    file: PathBuf,
    /// Who shall read it
    #[arg(long, value_enum)]
    to: Format,
    /// Dtype of its tensors
    #[arg(long, value_enum, default_value_t = Dtype::Bf16)]
    dtype: Dtype,
    /// Multiplies the adapter's effect, once
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    weight: f64,
    /// File to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Published,
    Comfyui,
    Diffusers,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Dtype {
    Bf16,
    F32,
}

/// Runs the subcommand.
pub fn run(args: &LoraArgs) -> Result<()> {
    let LoraCommand::Convert(args) = &args.command;
    let format = match args.to {
        Format::Published => LoraFormat::Published,
        Format::Comfyui => LoraFormat::Comfyui,
        Format::Diffusers => LoraFormat::Diffusers,
    };
    let kind = match args.dtype {
        Dtype::Bf16 => Kind::BFloat16,
        Dtype::F32 => Kind::Float,
    };
    let origin = args.file.display().to_string();
    let folder = folder_of(&args.out);
    ensure!(
        folder.is_dir(),
        "--out {}: there is no folder {}; make it first",
        args.out.display(),
        folder.display()
    );
    let files = WeightFiles::open_adapter(&args.file)?;
    let tensors = published_tensors(&files)?;
    let converted = convert(&tensors, &origin, format, kind, args.weight)?;
    drop(tensors);
    save(&args.out, &converted, &published_strings()).context("write the adapter")?;
    println!("{}: {} tensors for {format}", args.out.display(), converted.len());
    Ok(())
}
