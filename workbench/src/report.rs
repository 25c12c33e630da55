//! `report`: what a job has learned, and from what.
//!
//! ```text
//! job.json ─┐                ┌─▶ cases ─▶ draw (base, LoRA of each stage) ─▶ evaluate ─▶ score ─┐
//! objects ──┼─▶ job: left ───┤                     └─▶ pictures ─▶ grid.png                      ├─▶ figures ─▶ terminal,
//! library ──┘                └─▶ history ─▶ curve ─────────────────────────────────────────────┘   report.json, page
//! ```
//!
//! A job that has trained has a report: what cannot be had of it here is left out, with a sentence in the figures' notes.

mod cases;
mod curve;
mod draw;
mod evaluate;
mod figures;
pub(crate) mod grid;
pub(crate) mod history;
mod job;
mod machine;
mod objects;
mod page;
mod pictures;
mod rejected;
mod samples;
mod terminal;
#[cfg(test)]
mod tests;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use crescendo_core::spec::{self, JobSpec, ModelPreset, Precision, StageSpec};
use crescendo_device::DeviceChoice;
use crescendo_model::of_spec::{base_options, compute_kind};
use crescendo_model::tch::{Device, Kind};
use image::RgbImage;

use self::cases::{Block, Draws, Places};
pub(crate) use self::curve::escape;
use self::draw::{Contender, Drawer, Progress, Settings};
use self::figures::{Drawing, Figures, ScoreFigures, StageFigures, StatedFigures};
use self::job::{Job, Left, StageJson};
use self::machine::Machine;
use self::objects::Objects;
use self::page::Page;
use self::pictures::{Drawn, PictureBlock};
use self::rejected::Rejected;
use self::samples::Samples;
use self::words::counted;
use crate::measures::judge::Judge;

/// Flags of `report`.
#[derive(Debug, Args)]
#[command(
    after_help = "Writes report.html, report.json, grid.png and the trained weights into --out. What cannot be scored or drawn is \
                        left out, and the report says why.\n\n\
                        Example:\n  crescendo get JOB -o json > job.json\n  \
                        crescendo report --job job.json --object-store .crescendo/objects --out report"
)]
pub struct ReportArgs {
    /// The job, as printed by `crescendo get JOB -o json`
    #[arg(long, value_name = "FILE")]
    job: PathBuf,
    /// Root folder of the object store, or its URL: file:// or s3://BUCKET[/PREFIX], set up by AWS_* variables
    #[arg(long, value_name = "DIR|URL")]
    object_store: String,
    /// Folder that relative paths in the spec start from
    #[arg(long, value_name = "DIR", default_value = ".")]
    library_root: PathBuf,
    /// Folder to write into
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Euler steps of each drawing [default: 25, nano: 10]
    #[arg(long, value_name = "N")]
    draw_steps: Option<u32>,
    /// Subjects drawn for each score: a picture each, or fewer pictures with several in each [default: each subject 8 times, at
    /// most 48 in all, nano: 304]
    #[arg(long, value_name = "N")]
    draws: Option<usize>,
    /// Classifier-free guidance away from having neither prompt nor references; 1 is none [default: 1, nano: 2]
    #[arg(long, value_name = "SCALE")]
    true_cfg: Option<f64>,
    /// Leave out the base, which training does not change
    #[arg(long)]
    without_base: bool,
    /// CPU threads
    #[arg(long, default_value_t = 2)]
    threads: i32,
}

/// Runs `report`.
pub fn run(args: &ReportArgs) -> Result<()> {
    let began = Instant::now();
    if let Some(scale) = args.true_cfg {
        ensure!((1.0..=100.0).contains(&scale), "--true-cfg: {scale} is not between 1 and 100");
    }
    crescendo_model::tch::set_num_threads(args.threads.max(1));
    let job = Job::read(&args.job)?;
    let spec = job.spec()?;
    let objects = Objects::open(&args.object_store)?;
    std::fs::create_dir_all(&args.out).with_context(|| format!("make {}", args.out.display()))?;
    let left: Vec<Left> =
        job.stages.iter().zip(&spec.stages).map(|(stage, spec)| stage.left(spec, &objects)).collect();
    let mut notes = notes(&job, &left);

    let gpus = DeviceChoice::Auto.gpus()?;
    let device = gpus.first();
    let nano = spec.model.preset == ModelPreset::Nano;
    let settings = settings(args, &job, &spec, device)?;
    let places =
        Places { job_id: &job.job_id, spec: &spec, library_root: &args.library_root, objects: &objects };
    let mut shown = Shows::default();
    if !nano && device == Device::Cpu && args.draws.is_none() {
        notes.push(
            "nothing is drawn: this machine has no GPU that can be used, and a network of this size takes minutes for a picture without one; --draws N draws \
             all the same"
                .to_owned(),
        );
    } else {
        notes.extend(gpus.passed_over.as_ref().map(|error| format!("drawn on the CPU: {error}")));
        let draws = Draws { asked: args.draws, most: if nano { 304 } else { 48 } };
        shown = Shows::of(&places, &left, draws, !args.without_base, settings, &mut notes);
    }

    let samples = Samples::of_job(&job, &objects, &mut notes);
    let mut blocks = pictures::arranged(&shown.blocks, &shown.contenders, &shown.drawn);
    let mut written = save_grid(&blocks, &args.out)?;
    blocks.extend(samples.iter().filter_map(Samples::block));
    let trained = copy_trained(&left, &args.out)?;
    let was_drawn = shown.drawn.iter().any(Option::is_some);
    let figures = Figures {
        model: model_words(&spec, &job.stages),
        job_id: job.job_id.clone(),
        job_name: job.name.clone(),
        state: job.state.clone(),
        took_seconds: job.took().map(|took| took.as_secs_f64()),
        submitted_at: job.submitted_at.clone(),
        started_at: job.started_at.clone(),
        job_notes: job.notes.clone(),
        finished_at: job.finished_at.clone(),
        reported_at: figures::stamp(SystemTime::now()),
        report_seconds: began.elapsed().as_secs_f64(),
        version: env!("CARGO_PKG_VERSION"),
        machine: Machine::here(device, settings.kind),
        drawing: was_drawn.then_some(settings.drawing),
        encoder: shown.encoder.take(),
        scores: std::mem::take(&mut shown.scores),
        ceilings: std::mem::take(&mut shown.ceilings),
        stages: all_stages(&job, &spec, &left),
        stated: spec::stated(&spec).iter().map(StatedFigures::of).collect(),
        trained: trained.as_ref().map(|path| path.display().to_string()),
        notes,
    };
    let page = Page {
        figures: &figures,
        pictures: &blocks,
        histories: left.iter().map(|left| left.history.as_slice()).collect(),
        rejected: turned_down(&job, &objects),
        spec_yaml: &job.resolved_spec_yaml,
    };
    written.extend(write(&page, &args.out)?);
    print!("{}", terminal::render(&figures));
    println!();
    for path in written.iter().rev().chain(&trained) {
        println!("{}", path.display());
    }
    Ok(())
}

/// The picture of all rows; the file that it made, if there are any.
fn save_grid(blocks: &[PictureBlock<'_>], out: &Path) -> Result<Vec<PathBuf>> {
    let Some(grid) = pictures::grid(blocks) else { return Ok(Vec::new()) };
    let path = out.join("grid.png");
    grid.save(&path).with_context(|| format!("write {}", path.display()))?;
    Ok(vec![path])
}

/// What was drawn, and how it scored.
#[derive(Default)]
struct Shows {
    blocks: Vec<Block>,
    contenders: Vec<Contender>,
    /// Of each contender.
    drawn: Vec<Drawn>,
    scores: Vec<ScoreFigures>,
    ceilings: Vec<ScoreFigures>,
    encoder: Option<String>,
}

impl Shows {
    /// Draws and scores as much as there is; a note for each thing that there is not.
    fn of(
        places: &Places,
        left: &[Left],
        draws: Draws,
        with_base: bool,
        settings: Settings,
        notes: &mut Vec<String>,
    ) -> Self {
        let (blocks, of_cases) = cases::gather(places, draws);
        notes.extend(of_cases);
        let contenders = draw::contenders(places.spec, left, with_base);
        let drawn = draw_all(places, &blocks, &contenders, settings, notes);
        let mut shows = Self { blocks, contenders, drawn, ..Self::default() };
        if shows.blocks.iter().any(|block| block.scored)
            && let Err(error) = shows.score(places, settings.device, notes)
        {
            notes.push(format!("nothing is scored: {error:#}"));
        }
        shows
    }

    fn score(&mut self, places: &Places, device: Device, notes: &mut Vec<String>) -> Result<()> {
        let (encoders, name, note) = evaluate::encoders(places, device)?;
        notes.extend(note);
        let mut scores = vec![Vec::new(); self.contenders.len()];
        for (number, block) in self.blocks.iter().enumerate().filter(|(_, block)| block.scored) {
            let judge = Judge::new(&encoders, &block.set)?;
            let cases = &block.set.cases;
            let figures_of = |label: &str, pictures: &mut dyn Iterator<Item = &RgbImage>| {
                let scores = judge.score(pictures)?;
                anyhow::Ok(ScoreFigures::all(label, block.references, block.shown, &scores))
            };
            self.ceilings.extend(figures_of("real", &mut cases.iter().map(|case| &case.truth))?);
            let copied = cases.iter().map(|case| case.references.first().unwrap_or(&case.truth));
            self.ceilings.extend(figures_of("reference", &mut copied.into_iter())?);
            for ((contender, drawn), scores) in self.contenders.iter().zip(&self.drawn).zip(&mut scores) {
                let pictures = drawn.as_ref().and_then(|drawn| drawn.get(number));
                if let Some(pictures) = pictures.filter(|_| contender.is_scored_on(block)) {
                    scores.extend(figures_of(&contender.label, &mut pictures.iter())?);
                }
            }
        }
        self.scores = scores.into_iter().flatten().collect();
        self.encoder = Some(name);
        Ok(())
    }
}

/// What each contender draws of each block; a note for one that cannot.
fn draw_all(
    places: &Places,
    blocks: &[Block],
    contenders: &[Contender],
    settings: Settings,
    notes: &mut Vec<String>,
) -> Vec<Drawn> {
    let none = || contenders.iter().map(|_| None).collect();
    if blocks.is_empty() || contenders.is_empty() {
        return none();
    }
    let drawer = match Drawer::open(places, blocks, settings) {
        Ok(drawer) => drawer,
        Err(error) => {
            notes.push(format!("nothing is drawn: {error:#}"));
            return none();
        }
    };
    let base = match contenders.iter().any(Contender::needs_base).then(|| drawer.base(places)) {
        Some(Ok(base)) => Some(base),
        Some(Err(error)) => {
            notes.push(format!("nothing is drawn with the base, nor with a LoRA over it: {error:#}"));
            None
        }
        None => None,
    };
    let draws = |contender: &&Contender| base.is_some() || !contender.needs_base();
    let of_all =
        |contender: &Contender| blocks.iter().map(|block| contender.pictures_of(block)).sum::<usize>();
    let mut progress = Progress::begin(contenders.iter().filter(draws).map(of_all).sum());
    let mut drawn: Vec<Drawn> = Vec::new();
    for contender in contenders {
        if !draws(&contender) {
            drawn.push(None);
            continue;
        }
        drawn.push(match drawer.draw(contender, base.as_ref(), blocks, &mut progress) {
            Ok(pictures) => Some(pictures),
            Err(error) => {
                notes.push(format!("nothing is drawn with {}: {error:#}", contender.label));
                None
            }
        });
    }
    drawn
}

/// What is missing, and what changed while the job ran.
fn notes(job: &Job, left: &[Left]) -> Vec<String> {
    let missing = left.iter().flat_map(|left| left.missing.clone());
    let changes = job
        .stages
        .iter()
        .flat_map(|stage| stage.kind_changes.iter().map(|change| format!("{}: {change}", stage.name)));
    missing.chain(changes).collect()
}

/// How pictures are drawn.
fn settings(args: &ReportArgs, job: &Job, spec: &JobSpec, device: Device) -> Result<Settings> {
    let nano = spec.model.preset == ModelPreset::Nano;
    Ok(Settings {
        drawing: Drawing {
            steps: args.draw_steps.map_or(if nano { 10 } else { 25 }, i64::from),
            true_cfg: args.true_cfg.unwrap_or(if nano { 2.0 } else { 1.0 }),
        },
        kind: machine::drawing_kind(computed_in(job, spec, device), device)?,
        storage: base_options(spec.model.precision, device).storage,
        device,
    })
}

/// Writes the page and its figures; the files that it made.
fn write(page: &Page<'_>, out: &Path) -> Result<Vec<PathBuf>> {
    let html = page::render(page)?.into_bytes();
    let json = serde_json::to_vec_pretty(page.figures)?;
    let mut written = Vec::new();
    for (name, bytes) in [("report.html", html), ("report.json", json)] {
        let path = out.join(name);
        std::fs::write(&path, bytes).with_context(|| format!("write {}", path.display()))?;
        written.push(path);
    }
    Ok(written)
}

/// What the job's networks compute in on `device`: as the spec says, or as its stages came to.
fn computed_in(job: &Job, spec: &JobSpec, device: Device) -> Kind {
    let settled = job.stages.iter().any(|stage| stage.precision == "bf16");
    match spec.model.precision {
        Precision::Auto if settled => Kind::BFloat16,
        asked => compute_kind(asked, device),
    }
}

/// Copies what the last stage that has something trained into `out`.
fn copy_trained(left: &[Left], out: &Path) -> Result<Option<PathBuf>> {
    let Some(trained) = left.iter().rev().find_map(|left| left.trained.as_ref()) else { return Ok(None) };
    let from = trained.path();
    let to = out.join(from.file_name().context("what was trained has no name")?);
    std::fs::copy(from, &to).with_context(|| format!("copy {}", from.display()))?;
    Ok(Some(to))
}

/// Preset, precision and ranks. What `precision: auto` came to is what counts.
fn model_words(spec: &JobSpec, stages: &[StageJson]) -> String {
    let preset = match spec.model.preset {
        ModelPreset::FluxDev => "flux-dev",
        ModelPreset::FluxSchnell => "flux-schnell",
        ModelPreset::Nano => "nano",
    };
    let settled: BTreeSet<&str> = stages
        .iter()
        .map(|stage| stage.precision.as_str())
        .filter(|precision| !precision.is_empty())
        .collect();
    let precision = match spec.model.precision {
        Precision::Auto if settled.is_empty() => "precision auto".to_owned(),
        Precision::Auto => settled.into_iter().collect::<Vec<_>>().join(" and "),
        Precision::F32 => "f32".to_owned(),
        Precision::Bf16 => "bf16".to_owned(),
        Precision::Fp8 => "fp8".to_owned(),
    };
    format!("{preset}, {precision}, {}", counted(spec.resources.gpus as usize, "rank"))
}

fn all_stages(job: &Job, spec: &JobSpec, left: &[Left]) -> Vec<StageFigures> {
    let stages = job.stages.iter().zip(&spec.stages).zip(left);
    let figures = |((stage, spec), left): ((&StageJson, &StageSpec), &Left)| StageFigures {
        validation: samples::validation(job, &stage.name),
        ..stage_figures(stage, spec, left)
    };
    stages.map(figures).collect()
}

/// Of each stage, by reason.
fn turned_down(job: &Job, objects: &Objects) -> Vec<BTreeMap<String, Vec<Rejected>>> {
    job.stages.iter().map(|stage| rejected::of_stage(objects, &job.job_id, &stage.name)).collect()
}

fn stage_figures(stage: &StageJson, spec: &StageSpec, left: &Left) -> StageFigures {
    let (loss_at_the_end, median_step_seconds) = figures::ending(&left.history);
    StageFigures {
        name: stage.name.clone(),
        source: spec.data.source.word(),
        references: spec.references,
        steps: left.history.last().map_or(stage.step, |step| step.step),
        steps_total: spec.train.steps,
        restarts: stage.restarts,
        replay_passes: stage.replay_passes,
        precision: stage.precision.clone(),
        pairs_accepted: stage.pairs_committed,
        pairs_wanted: stage.pairs_target,
        pairs_rejected: stage.pairs_rejected.clone(),
        distributions: stage.scores.clone(),
        loss_at_the_end,
        median_step_seconds,
        validation: Vec::new(),
    }
}
