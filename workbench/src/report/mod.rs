//! `report`: what a finished job has learned, on subjects that training never saw.
//!
//! ```text
//! job.json ─┐
//! objects ──┼─▶ base, LoRA of each stage ─▶ draw ──▶ evaluate ─▶ score ─┬─▶ grid.png
//! subjects ─┘                 history.jsonl ─▶ curve ───────────────────┴─▶ page: report.html, report.json
//! ```

mod curve;
mod evaluate;
pub(crate) mod grid;
pub(crate) mod history;
mod job;
mod page;
mod score;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use crescendo_core::spec::{
    ComposeLayout, ComposeSpec, DataSource, GenerateSpec, JobSpec, ModelPreset, Precision, StageSpec,
};
use crescendo_curator_node::compose::{Composer, EvalCase, EvalSet};
use crescendo_curator_node::studio::position_mode;
use crescendo_model::codec::TextEncoder as _;
use crescendo_model::dinov2::DinoV2;
use crescendo_model::drawing::{Easel, FreeGuidance, Sketch};
use crescendo_model::nano::{PixelCodec, WordVectorText};
use crescendo_model::randomness::SampleKey;
use crescendo_model::tch::{Device, Kind};
use crescendo_model::unope::PositionMode;
use crescendo_model::{Flux, FluxConfig, LoraAdapter, Preset};
use image::RgbImage;

pub(crate) use self::curve::escape;
use self::evaluate::Judge;
use self::grid::{Cell, draw_grid};
use self::job::{FinishedJob, FinishedStage};
use self::page::{Report, StageReport};
use self::score::Score;

/// Held-out subjects to choose from in each score.
const CHOICES: usize = 16;
/// Seed of the evaluation cases; another than any job's, and fixed, so that reports compare.
const EVAL_SEED: u64 = 7_310_417;
/// Rows of the grid with one subject, and with two.
const GRID_ROWS: (usize, usize) = (8, 6);
/// Cases that go through the network together.
const DRAWN_TOGETHER: usize = 38;
/// Height and width of a grid cell, pixels.
const GRID_CELL: u32 = 128;

/// Flags of `report`.
#[derive(Debug, Args)]
#[command(after_help = "Writes report.html, report.json, grid.png and dit_lora.safetensors into --out.\n\n\
                        Example:\n  crescendo get JOB -o json > job.json\n  \
                        crescendo report --job job.json --object-store .crescendo/objects --out report")]
pub struct ReportArgs {
    /// The finished job, as printed by `crescendo get JOB -o json`
    #[arg(long, value_name = "FILE")]
    job: PathBuf,
    /// Root folder of the object store
    #[arg(long, value_name = "DIR")]
    object_store: PathBuf,
    /// Folder that relative paths in the spec start from
    #[arg(long, value_name = "DIR", default_value = ".")]
    library_root: PathBuf,
    /// Folder to write into
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Euler steps of each drawing
    #[arg(long, default_value_t = 10)]
    draw_steps: i64,
    /// Pictures drawn for each score with one subject
    #[arg(long, default_value_t = 304)]
    draws: usize,
    /// Pictures drawn for each score with two subjects
    #[arg(long, default_value_t = 152)]
    pair_draws: usize,
    /// Classifier-free guidance away from having neither prompt nor references; 1 is none
    #[arg(long, default_value_t = 2.0)]
    true_cfg: f64,
    /// Leave out the base, which training does not change
    #[arg(long)]
    without_base: bool,
    /// CPU threads
    #[arg(long, default_value_t = 2)]
    threads: i32,
}

/// A model whose pictures are scored: the base (no adapter), or what a stage ended with.
struct Contender<'a> {
    label: &'a str,
    adapter: Option<LoraAdapter>,
    references: u32,
    positions: PositionMode,
}

/// Runs `report`.
pub fn run(args: &ReportArgs) -> Result<()> {
    ensure!((1.0..=100.0).contains(&args.true_cfg), "--true-cfg: {} is not between 1 and 100", args.true_cfg);
    crescendo_model::tch::set_num_threads(args.threads);
    let job = FinishedJob::read(&args.job)?;
    let spec = job.spec()?;
    let stages = job.stages_of(&spec, &args.object_store)?;
    anyhow::ensure!(
        spec.model.preset == ModelPreset::Nano,
        "only jobs of the preset nano can be reported on: its scores need the nano encoders"
    );
    let config = FluxConfig::from(&spec.model);
    let base_path =
        args.library_root.join(spec.model.weights.as_deref().context("the spec has no model.weights")?);
    let kind = if spec.model.precision == Precision::Bf16 { Kind::BFloat16 } else { Kind::Float };
    let flux = Flux::load(&config, &base_path, kind, Device::Cpu).context("load the base")?;
    let (compose, encoder_path) = compose_settings(&spec)?;
    let encoder =
        DinoV2::load(&args.library_root.join(encoder_path), Device::Cpu).context("load the image encoder")?;
    let composer =
        Composer::open(&compose, 1, spec.seed, 0, &args.library_root).context("open the subjects")?;
    let singles = composer.eval_set(args.draws, 1, CHOICES, EVAL_SEED).context("make evaluation cases")?;
    let doubles =
        composer.eval_set(args.pair_draws, 2, CHOICES, EVAL_SEED).context("make evaluation cases")?;
    let judge = Judge::new(&encoder, &singles)?;
    let truths = |set: &EvalSet| set.cases.iter().map(|case| case.truth.clone()).collect::<Vec<_>>();
    let ceiling = judge.score("real pictures, one subject", 0, &singles.cases, &truths(&singles))?;
    let pair_ceiling = judge.score("real pictures, two subjects", 0, &doubles.cases, &truths(&doubles))?;

    let mut contenders = Vec::new();
    if !args.without_base {
        let first = spec.stages.first().context("the spec has no stage")?;
        let positions = position_mode(first.positions);
        contenders.push(Contender { label: "base", adapter: None, references: 0, positions });
    }
    for (stage, spec) in stages.iter().zip(&spec.stages) {
        let adapter = LoraAdapter::load(&config, &stage.lora, Kind::Float, Device::Cpu)
            .with_context(|| format!("load the LoRA of {}", stage.name))?;
        contenders.push(Contender {
            label: &stage.name,
            adapter: Some(adapter),
            references: spec.references,
            positions: position_mode(spec.positions),
        });
    }

    let empty = WordVectorText.encode(&[""])?;
    let mut scores = Vec::new();
    let mut drawn: Vec<(Vec<RgbImage>, Vec<RgbImage>)> = Vec::new();
    for contender in &contenders {
        let easel = Easel {
            positions: contender.positions,
            free_guidance: (args.true_cfg != 1.0)
                .then_some(FreeGuidance { scale: args.true_cfg, empty: &empty }),
            ..Easel::for_preset(Preset::Nano, &flux, &PixelCodec, args.draw_steps)
        };
        let size = (compose.panel, compose.panel);
        let draw = |set: &EvalSet, count: usize| -> Result<Vec<RgbImage>> {
            let sketches: Vec<Sketch> = set
                .cases
                .iter()
                .take(count)
                .enumerate()
                .map(|(n, case)| sketch(n, case, contender))
                .collect();
            easel
                .draw_sketches(&WordVectorText, contender.adapter.as_ref(), size, DRAWN_TOGETHER, &sketches)
                .with_context(|| format!("draw with {}", contender.label))
        };
        // Every model is scored on what it was trained for; the grid shows it on both kinds of case.
        let one = if contender.references < 2 { args.draws } else { GRID_ROWS.0 };
        let two = if contender.references != 1 { args.pair_draws } else { GRID_ROWS.1 };
        let (singles_drawn, doubles_drawn) = (draw(&singles, one)?, draw(&doubles, two)?);
        if one == args.draws {
            let label = format!("{}, one subject", contender.label);
            scores.push(judge.score(&label, contender.references, &singles.cases, &singles_drawn)?);
        }
        if two == args.pair_draws {
            let label = format!("{}, each of two subjects", contender.label);
            scores.push(judge.score(&label, contender.references, &doubles.cases, &doubles_drawn)?);
        }
        drawn.push((singles_drawn, doubles_drawn));
    }

    std::fs::create_dir_all(&args.out).with_context(|| format!("make {}", args.out.display()))?;
    let grid = grid_of(&contenders, &singles, &doubles, &drawn);
    let grid_path = args.out.join("grid.png");
    grid.save(&grid_path).with_context(|| format!("write {}", grid_path.display()))?;
    let lora_path = args.out.join("dit_lora.safetensors");
    let last = stages.last().context("the job has no stage")?;
    std::fs::copy(&last.lora, &lora_path).with_context(|| format!("copy {}", last.lora.display()))?;
    write_figures(&args.out.join("report.json"), &job, &scores, &[&ceiling, &pair_ceiling])?;
    let page = page::render(&Report {
        job_id: &job.job_id,
        job_name: &job.name,
        stages: stages.iter().zip(&spec.stages).map(|(stage, spec)| stage_report(stage, spec)).collect(),
        scores: &scores,
        ceilings: &[ceiling, pair_ceiling],
        candidates: CHOICES.min(singles.gallery.len()),
        grid_png: &std::fs::read(&grid_path)?,
        lora_path: &lora_path.display().to_string(),
        spec_yaml: &job.resolved_spec_yaml,
    });
    let html_path = args.out.join("report.html");
    std::fs::write(&html_path, page).with_context(|| format!("write {}", html_path.display()))?;
    for score in &scores {
        println!(
            "{:<36} {:5.1} % ± {:.1} nearest of {} ({} draws)",
            score.label,
            100.0 * score.share(),
            100.0 * score.standard_error(),
            CHOICES,
            score.draws()
        );
    }
    Ok(())
}

/// The compose settings of the first stage, or what its subjects amount to if it draws them, and the image encoder of the
/// first similarity filter.
fn compose_settings(spec: &JobSpec) -> Result<(ComposeSpec, &str)> {
    let stage = spec.stages.first().context("the spec has no stage")?;
    let compose = match &stage.data.source {
        DataSource::Compose(compose) => compose.clone(),
        DataSource::Generate(GenerateSpec {
            subjects: Some(subjects),
            panel,
            name_share,
            hold_out_one_in,
            ..
        }) => ComposeSpec {
            subjects: subjects.clone(),
            photos: None,
            layout: ComposeLayout::Single,
            panel: *panel,
            name_share: *name_share,
            hold_out_one_in: *hold_out_one_in,
        },
        DataSource::Generate(_) | DataSource::Import(_) | DataSource::Recompose(_) | DataSource::Crop(_) => {
            anyhow::bail!("stage {} has no subject library, so there are no held-out subjects", stage.name)
        }
    };
    ensure!(compose.hold_out_one_in > 0, "stage {} holds no subject out (data.holdOutOneIn)", stage.name);
    let filter = spec.stages.iter().find_map(|stage| stage.data.filter.similarity.as_ref());
    let encoder = filter.context("no stage names an image encoder (data.filter.similarity)")?;
    Ok((compose, &encoder.encoder))
}

/// What `contender` is given of a case: as many references as there are subjects, none for the base.
fn sketch<'a>(n: usize, case: &'a EvalCase, contender: &Contender) -> Sketch<'a> {
    let references = if contender.adapter.is_some() { case.references.as_slice() } else { &[] };
    Sketch { prompt: &case.prompt, references, noise: SampleKey::for_seed(EVAL_SEED + n as u64) }
}

fn stage_report<'a>(stage: &'a FinishedStage, spec: &StageSpec) -> StageReport<'a> {
    StageReport {
        name: &stage.name,
        references: spec.references,
        steps: spec.train.steps,
        restarts: stage.restarts,
        pairs_accepted: stage.pairs_committed,
        pairs_rejected: stage.pairs_rejected.iter().map(|(reason, n)| (reason.as_str(), *n)).collect(),
        scores: &stage.scores,
        history: &stage.history,
    }
}

fn grid_of<'a>(
    contenders: &[Contender<'a>],
    singles: &'a EvalSet,
    doubles: &'a EvalSet,
    drawn: &'a [(Vec<RgbImage>, Vec<RgbImage>)],
) -> RgbImage {
    let mut headings = vec!["reference", "second reference", "prompt"];
    headings.extend(contenders.iter().map(|c| c.label));
    let picture = |of: Option<&'a RgbImage>| of.map_or(Cell::Empty, Cell::Picture);
    let mut rows = Vec::new();
    let blocks = [
        (singles, GRID_ROWS.0, drawn.iter().map(|(one, _)| one).collect::<Vec<_>>()),
        (doubles, GRID_ROWS.1, drawn.iter().map(|(_, two)| two).collect()),
    ];
    for (set, count, pictures) in blocks {
        for (n, case) in set.cases.iter().enumerate().take(count) {
            let mut row = vec![
                picture(case.references.first()),
                picture(case.references.get(1)),
                Cell::Text(&case.prompt),
            ];
            row.extend(pictures.iter().map(|of| picture(of.get(n))));
            rows.push(row);
        }
    }
    draw_grid(&headings, &rows, GRID_CELL)
}

fn write_figures(path: &Path, job: &FinishedJob, scores: &[Score], ceilings: &[&Score]) -> Result<()> {
    let row = |score: &Score| {
        serde_json::json!({
            "model": score.label,
            "references": score.references,
            "right": score.share(),
            "standard_error": score.standard_error(),
            "standard_error_over_subjects": score.standard_error_over_subjects(),
            "draws": score.draws(),
        })
    };
    let figures = serde_json::json!({
        "job_id": job.job_id,
        "choices": CHOICES,
        "scores": scores.iter().map(row).collect::<Vec<_>>(),
        "ceilings": ceilings.iter().map(|score| row(score)).collect::<Vec<_>>(),
    });
    std::fs::write(path, serde_json::to_vec_pretty(&figures)?)
        .with_context(|| format!("write {}", path.display()))
}
