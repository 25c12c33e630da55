//! `inspect`: what a weight file is, and what is wrong with it, from its header alone.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use crescendo_model::inspect::{Inspection, inspect};
use crescendo_model::weight_files::WeightFiles;

use crate::parity::Output;

/// Problems that the table names; a file of another network can have thousands. JSON has all.
const PROBLEMS_SHOWN: usize = 40;

/// Tell what a weight file is without loading it.
///
/// Exits with 0 if a network can be loaded from it, otherwise with 1.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Safetensors file, index of several (*.index.json), or a folder with either
    file: PathBuf,
    /// How to print the result
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// Runs the subcommand.
pub fn run(args: &InspectArgs) -> Result<ExitCode> {
    let files = WeightFiles::open(&args.file)?;
    let found = inspect(&files.header());
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&found)?),
        Output::Table => print!("{}", text(&files.path().display().to_string(), &found)?),
    }
    Ok(if found.fits { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn text(name: &str, found: &Inspection) -> Result<String, std::fmt::Error> {
    let mut out = String::new();
    let sort = found.family.map_or("nothing that is known here", |family| family.describe());
    let presets = if found.presets.is_empty() {
        found.config.as_ref().map_or_else(String::new, |_| ", explicit sizes".to_owned())
    } else {
        format!(", {}", found.presets.join(" or "))
    };
    writeln!(out, "{name}: {sort}{presets}")?;
    if let Some(form) = &found.form {
        writeln!(out, "  read from another form: {form}")?;
    }
    for (fact, value) in &found.facts {
        writeln!(out, "  {fact}: {value}")?;
    }
    if let Some(config) = found.config.as_ref().filter(|_| found.presets.is_empty()) {
        writeln!(
            out,
            "  width {}, {} heads, {} double and {} single blocks, MLP ratio {}, guidance {}",
            config.hidden_size,
            config.num_heads,
            config.depth,
            config.depth_single_blocks,
            config.mlp_ratio,
            if config.guidance_embed { "yes" } else { "no" }
        )?;
    }
    writeln!(
        out,
        "  {} tensors, {} parameters, {:.3} GB",
        found.tensors,
        found.parameters,
        found.bytes as f64 / 1e9
    )?;
    for (dtype, count) in &found.dtypes {
        writeln!(out, "  {dtype}: {} tensors, {} parameters", count.tensors, count.parameters)?;
    }
    for problem in found.problems.iter().take(PROBLEMS_SHOWN) {
        writeln!(out, "  {problem}")?;
    }
    if let Some(more) = found.problems.len().checked_sub(PROBLEMS_SHOWN).filter(|more| *more > 0) {
        writeln!(out, "  and {more} more problems (-o json has all)")?;
    }
    let verdict = match (found.fits, found.obstacle) {
        (true, _) => "fits".to_owned(),
        (false, Some(obstacle)) => format!("cannot be loaded: {obstacle}"),
        (false, None) if found.family.is_none() => "does not fit any network".to_owned(),
        (false, None) => format!("does not fit: {} problem(s)", found.problems.len()),
    };
    writeln!(out, "  {verdict}")?;
    Ok(out)
}
