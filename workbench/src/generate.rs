//! `generate`: pictures from a prompt and, if wanted, references.
//!
//! ```text
//!  prompt ─ text encoders ─┐   (left again before the transformer is loaded)
//!  references ─ codec ─────┼─▶ transformer + LoRA ─▶ codec ─▶ PNG with its settings
//!  seed ─ noise ───────────┘      once for each LoRA and seed
//! ```

mod outputs;
mod parts;
mod png;
mod settings;
mod steps;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use crescendo_core::spec::Orientation;
use crescendo_dataset::checkpoint::{SPEC_FILE, STATE_FILE};
use crescendo_dataset::pictures::{Picture, reference};
use crescendo_model::codec::{EncodedText, LatentCodec};
use crescendo_model::drawing::{FreeGuidance, PipelineConfig};
use crescendo_model::flux::{LoadOptions, Offload, Storage};
use crescendo_model::pictures;
use crescendo_model::randomness::SampleKey;
use crescendo_model::sampler::StepView;
use crescendo_model::tch::Tensor;
use crescendo_model::unope::Offsets;
use crescendo_model::{Flux, LoraAdapter, Preset};
use image::RgbImage;

pub use self::parts::{ModelArgs, Parts};
use self::settings::{DrawSettings, Resolved, Settings};
use self::steps::Steps;
use crate::report::grid::{Cell, draw_grid};

/// Most references of one picture.
const MAX_REFERENCES: usize = 8;
/// Most pictures of one call.
const MAX_PICTURES: usize = 256;
/// Side of a picture in a grid, pixels.
const GRID_CELL: u32 = 256;

/// Draw pictures from a prompt, with references of the subjects if wanted.
///
/// Every PNG carries the settings that made it (text chunk `crescendo`, JSON). The same settings on the same machine
/// give the same picture.
#[derive(Debug, clap::Args)]
pub struct GenerateArgs {
    /// What to draw
    #[arg(long)]
    prompt: String,
    /// Picture of a subject, turned upright as its EXIF data say; give it again for each further one, 8 at most
    #[arg(long = "reference", value_name = "FILE")]
    references: Vec<PathBuf>,
    /// Take references as their pixels lie in the file, whatever their EXIF data say: what the published code does
    #[arg(long, requires = "references")]
    as_stored: bool,
    #[command(flatten)]
    model: ModelArgs,
    /// LoRA to draw with: a file, or a checkpoint's folder, under the names of UNO, XLabs, kohya, ComfyUI, PEFT or diffusers; several make a grid with a column each, `none` is the base alone
    #[arg(long = "lora", value_name = "FILE")]
    loras: Vec<PathBuf>,
    /// Strength of the LoRA: 0 is the base, 1 the LoRA as trained
    #[arg(long, default_value_t = 1.0, value_name = "WEIGHT")]
    lora_weight: f64,
    /// Seed of the noise; several, separated by commas, make a grid with a row each
    #[arg(long, value_delimiter = ',', default_value = "3407", value_name = "SEED")]
    seed: Vec<u64>,
    #[command(flatten)]
    draw: DrawSettings,
    /// The picture; with several pictures the grid, and each picture beside it with its LoRA and seed in the name. Pictures
    /// that were drawn before are replaced, other files never
    #[arg(long, default_value = "generated.png", value_name = "FILE")]
    out: PathBuf,
    /// CPU threads [default: one for each core, nano: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..=1024))]
    threads: Option<i32>,
}

/// What to draw with.
struct Column {
    heading: String,
    lora: Option<PathBuf>,
}

/// Draws everything and writes the files.
pub fn run(args: &GenerateArgs) -> Result<ExitCode> {
    let columns = columns(&args.loras);
    let parts = args.model.parts()?;
    let draw = args.draw.resolved(&parts)?;
    let references = checked(args, &columns, &parts)?;
    // The nano network is so small that threads wait for each other longer than they compute, on a busy machine by far.
    let threads = args.threads.or((parts.preset == Preset::Nano).then_some(1));
    if let Some(threads) = threads {
        crescendo_model::tch::set_num_threads(threads);
    }
    let inputs = Inputs::encoded(args, &parts, &draw, &references)?;
    let options = LoadOptions {
        storage: if args.model.fp8 { Storage::Float8 } else { Storage::Compute },
        blocks: if args.model.offload { Offload::Host } else { Offload::Device },
        ..LoadOptions::resident(parts.kind, parts.device)
    };
    let flux = Flux::load_with(&parts.config, &parts.weights, &options).context("load the transformer")?;
    let config = PipelineConfig {
        flux: &flux,
        codec: inputs.codec.as_ref(),
        positions: Offsets::unscaled(draw.positions.into()).scaled(draw.position_scale),
        steps: draw.steps,
        guidance: draw.guidance,
        free_guidance: inputs.empty.as_ref().map(|empty| FreeGuidance { scale: draw.true_cfg, empty }),
        published_schedule: draw.published_schedule,
        exact_times: draw.exact_times,
    };
    let pictures = columns.len() * args.seed.len();
    let mut rows: Vec<Vec<RgbImage>> = args.seed.iter().map(|_| Vec::new()).collect();
    for (number, column) in columns.iter().enumerate() {
        let lora = column.lora.as_deref().map(|path| adapter(&flux, path, args.lora_weight)).transpose()?;
        for (row_number, (seed, row)) in args.seed.iter().zip(&mut rows).enumerate() {
            let began = Instant::now();
            let noise = [SampleKey::for_seed(*seed)];
            let mut steps = Steps::of(number * args.seed.len() + row_number, pictures);
            let mut tell = |step: &StepView<'_>| {
                steps.done(step.index, step.total);
                Ok(())
            };
            let size = (draw.width, draw.height);
            let drawn = config.draw(lora.as_ref(), size, &noise, &inputs.text, &inputs.refs, Some(&mut tell));
            steps.end();
            let picture = drawn.context("draw")?.pop().context("no picture was drawn")?;
            let settings = Settings {
                prompt: &args.prompt,
                references: &args.references,
                orientation: args.orientation(),
                weights: &parts.weights,
                preset: parts.preset,
                lora: column.lora.as_deref(),
                lora_weight: args.lora_weight,
                seed: *seed,
                draw: &draw,
                version: env!("CARGO_PKG_VERSION"),
            };
            let path = args.path(column, *seed, pictures);
            png::save(&path, &picture, &serde_json::to_string(&settings)?)?;
            println!("{}  {:.1} s", path.display(), began.elapsed().as_secs_f64());
            row.push(picture);
        }
    }
    if pictures > 1 {
        save_grid(args, &columns, &rows)?;
        println!("{}", args.out.display());
    }
    Ok(ExitCode::SUCCESS)
}

impl GenerateArgs {
    /// Which way up references are taken.
    fn orientation(&self) -> Orientation {
        if self.as_stored { Orientation::AsStored } else { Orientation::Upright }
    }

    /// Where one of `pictures` goes.
    fn path(&self, column: &Column, seed: u64, pictures: usize) -> PathBuf {
        if pictures == 1 { self.out.clone() } else { beside(&self.out, &column.heading, seed) }
    }
}

/// The references, after everything that can be wrong has been looked at that needs no network: loading one takes minutes.
fn checked(args: &GenerateArgs, columns: &[Column], parts: &Parts) -> Result<Vec<RgbImage>> {
    let count = args.references.len();
    ensure!(count <= MAX_REFERENCES, "--reference: {count} references, at most {MAX_REFERENCES} are taken");
    let pictures = columns.len() * args.seed.len();
    ensure!(
        pictures <= MAX_PICTURES,
        "{} LoRAs and {} seeds are more than {MAX_PICTURES} pictures",
        columns.len(),
        args.seed.len()
    );
    outputs::check(&args.out)?;
    for column in columns {
        for seed in &args.seed {
            outputs::check(&args.path(column, *seed, pictures))?;
        }
    }
    ensure!(parts.weights.exists(), "the transformer {}: there is no such file", parts.weights.display());
    for lora in columns.iter().filter_map(|column| column.lora.as_deref()) {
        ensure!(lora.exists(), "--lora {}: there is no such file or folder", lora.display());
        if let Some(trained) = trained_references(lora).filter(|trained| count > *trained) {
            eprintln!("warning: {count} references, {} was trained with {trained}", lora.display());
        }
    }
    let references = read_references(args, parts)?;
    // Headers last: what else is wrong is told without opening a file of many gigabytes.
    parts.check()?;
    for lora in columns.iter().filter_map(|column| column.lora.as_deref()) {
        LoraAdapter::check_files(&parts.config, lora).context("--lora")?;
    }
    Ok(references)
}

/// What is drawn from, encoded, and what turns latents into pictures.
struct Inputs {
    text: EncodedText,
    /// The empty prompt, where there is guidance away from it.
    empty: Option<EncodedText>,
    refs: Vec<Tensor>,
    codec: Box<dyn LatentCodec>,
}

impl Inputs {
    fn encoded(args: &GenerateArgs, parts: &Parts, draw: &Resolved, references: &[RgbImage]) -> Result<Self> {
        let encoder = parts.text()?;
        let text = encoder.encode(&[&args.prompt]).context("encode the prompt")?;
        let empty = (draw.true_cfg > 1.0).then(|| encoder.encode(&[""])).transpose()?;
        // Before the transformer comes: T5 takes as much memory.
        drop(encoder);
        let codec = parts.codec()?;
        let pixels =
            references.iter().map(|picture| Ok(codec.encode(&pictures::to_model_input(&[picture])?)?));
        let refs = pixels.collect::<Result<Vec<Tensor>>>().context("encode the references")?;
        Ok(Self { text, empty, refs, codec })
    }
}

fn columns(loras: &[PathBuf]) -> Vec<Column> {
    let base = || Column { heading: "base".to_owned(), lora: None };
    if loras.is_empty() {
        return vec![base()];
    }
    let named = |path: &PathBuf| {
        if path.as_os_str() == "none" {
            return base();
        }
        let stem = |path: &Path| path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        // Checkpoints all hold a dit_lora.safetensors: the folder tells them apart.
        let heading = match (stem(path), path.parent().and_then(stem)) {
            (Some(name), Some(folder)) if name == "dit_lora" => folder,
            (Some(name), _) => name,
            (None, _) => "lora".to_owned(),
        };
        Column { heading, lora: Some(path.clone()) }
    };
    loras.iter().map(named).collect()
}

fn read_references(args: &GenerateArgs, parts: &Parts) -> Result<Vec<RgbImage>> {
    let long = args.draw.reference_size.unwrap_or_else(|| parts.reference_size(args.references.len()));
    let read = |path: &PathBuf| {
        let picture = Picture::open_as(path, args.orientation())?;
        Ok(reference::prepare(&path.display().to_string(), &picture, long, parts.multiple())?)
    };
    args.references.iter().map(read).collect()
}

/// References per sample in the job that a checkpoint's LoRA comes from, if the files beside it tell.
fn trained_references(lora: &Path) -> Option<usize> {
    let read = |name: &str| -> Option<serde_json::Value> {
        let beside = if lora.is_dir() { lora.join(name) } else { lora.with_file_name(name) };
        serde_json::from_slice(&std::fs::read(beside).ok()?).ok()
    };
    let (spec, state) = (read(SPEC_FILE)?, read(STATE_FILE)?);
    let stage =
        spec.get("stages")?.as_array()?.iter().find(|stage| stage.get("name") == state.get("stage"))?;
    usize::try_from(stage.get("references")?.as_u64()?).ok()
}

/// `out` with a column's heading and a seed in its name.
fn beside(out: &Path, heading: &str, seed: u64) -> PathBuf {
    let stem = out.file_stem().map_or("generated".into(), |stem| stem.to_string_lossy());
    out.with_file_name(format!("{stem}-{heading}-{seed}.png"))
}

fn save_grid(args: &GenerateArgs, columns: &[Column], rows: &[Vec<RgbImage>]) -> Result<()> {
    let labels: Vec<String> = args.seed.iter().map(|seed| format!("seed {seed}")).collect();
    let mut headings = vec![""];
    headings.extend(columns.iter().map(|column| column.heading.as_str()));
    let cells: Vec<Vec<Cell>> = labels
        .iter()
        .zip(rows)
        .map(|(label, row)| std::iter::once(Cell::Text(label)).chain(row.iter().map(Cell::Picture)).collect())
        .collect();
    let note = serde_json::json!({ "prompt": args.prompt, "seeds": args.seed }).to_string();
    png::save(&args.out, &draw_grid(&headings, &cells, GRID_CELL), &note)
}

fn adapter(flux: &Flux, path: &Path, weight: f64) -> Result<LoraAdapter> {
    let mut adapter = LoraAdapter::load(flux.config(), path, flux.compute_kind(), flux.device())
        .context("load the LoRA")?;
    adapter.scale_effect(weight)?;
    Ok(adapter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_named_so_that_they_can_be_told_apart() {
        let names = |paths: &[&str]| -> Vec<String> {
            let paths: Vec<PathBuf> = paths.iter().map(PathBuf::from).collect();
            columns(&paths).into_iter().map(|column| column.heading).collect()
        };
        assert_eq!(names(&[]), ["base"]);
        assert_eq!(
            names(&["none", "a/step-5/dit_lora.safetensors", "b/cat.safetensors"]),
            ["base", "step-5", "cat"]
        );
    }

    #[test]
    fn a_checkpoint_tells_how_many_references_it_was_trained_with() {
        let folder = tempfile::tempdir().unwrap();
        let lora = folder.path().join("dit_lora.safetensors");
        assert_eq!(trained_references(&lora), None);
        let spec = r#"{"stages": [{"name": "one", "references": 1}, {"name": "two", "references": 3}]}"#;
        std::fs::write(folder.path().join("resolved_spec.json"), spec).unwrap();
        std::fs::write(folder.path().join("state.json"), r#"{"stage": "two"}"#).unwrap();
        assert_eq!(trained_references(&lora), Some(3));
    }
}
