//! `eval`: scores drawings of a benchmark as published, and by the subjects that are found in them.
//!
//! ```text
//! benchmark (folder, rows) ─┐
//! drawings ROW_SAMPLE.png ──┼─▶ judge ─▶ scores-I-of-N.jsonl ─▶ summary ─▶ results.json, pictures.csv, results.html
//! networks (CLIP, DINO, …) ─┘            one a shard
//! ```
//!
//! A picture's score is kept with a digest of all that it depends on, so that a run that was stopped, or one after a few
//! drawings have changed, does only what is left. Several processes, each with its shard, share one output folder; the
//! results are written by the one that finds no score missing.

mod benchmark;
mod judge;
mod ledger;
mod networks;
mod page;
mod prompts;
mod summary;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use crescendo_dataset::pictures::MAX_FILE_BYTES;
use crescendo_dataset::whole_file;
use crescendo_model::tch::Device;

pub use benchmark::{Benchmark, Row, Subject};
pub use judge::{Features, Found, PictureScore, Scorer};
pub use ledger::Shard;
pub use networks::{Finder, NetworkFiles, Networks, Reader};
pub use summary::{CropMeans, GroupSummary, Means, Summary};

/// Flags of `eval`.
#[derive(Debug, Args)]
#[command(
    after_help = "Drawings are called ROW_SAMPLE.png, both numbers from 0. Writes results.json, pictures.csv and \
                        results.html into --out.\n\n\
                        Example:\n  crescendo eval --benchmark dreambench_multiip.json --drawings drawn --samples 6 \\\n    \
                        --clip clip-vit-base-patch32 --dino dino_vits16.safetensors --owlv2 owlv2-base-patch16-ensemble --out scores"
)]
pub struct EvalArgs {
    /// DreamBench folder, or JSON file of rows with `prompt` and `image_paths`
    #[arg(long, value_name = "PATH")]
    benchmark: PathBuf,
    /// Folder that the paths in a file of rows start from [default: the file's own]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Folder of the drawings
    #[arg(long, value_name = "DIR")]
    drawings: PathBuf,
    /// Drawings of each row; the paper's table for several subjects has 6
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    samples: u32,
    /// Folder of CLIP ViT-B/32: weights, config.json, tokenizer files
    #[arg(long, value_name = "DIR")]
    clip: PathBuf,
    /// Weights of DINO ViT-S/16
    #[arg(long, value_name = "FILE")]
    dino: PathBuf,
    /// Folder of OWLv2; also scores the subjects by the boxes that it finds them in
    #[arg(long, value_name = "DIR")]
    owlv2: Option<PathBuf>,
    /// Score above which OWLv2's boxes count
    #[arg(long, value_name = "SCORE", default_value_t = 0.2)]
    threshold: f32,
    /// Folder to write into; scores in it are used again
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Score only every Nth picture, starting with the Ith, from 0; for N processes
    #[arg(long, value_name = "I/N", default_value = "0/1")]
    shard: Shard,
    /// `cpu`, `cuda` or `cuda:INDEX`
    #[arg(long, default_value = "cpu", value_parser = crescendo_device::parse)]
    device: Device,
    /// CPU threads
    #[arg(long, default_value_t = 2)]
    threads: i32,
}

/// Runs `eval`.
pub fn run(args: &EvalArgs) -> Result<()> {
    crescendo_model::tch::set_num_threads(args.threads.max(1));
    crescendo_device::open(args.device)?;
    let files = NetworkFiles {
        clip: args.clip.clone(),
        dino: args.dino.clone(),
        owlv2: args.owlv2.clone(),
        threshold: args.threshold,
    };
    let work = Work {
        benchmark: Benchmark::read(&args.benchmark, args.root.as_deref())?,
        drawings: args.drawings.clone(),
        samples: args.samples as usize,
        out: args.out.clone(),
        shard: args.shard,
    };
    // Before minutes are spent on loading networks.
    work.check_drawings()?;
    let networks = Networks::load(&files, args.device)?;
    let outcome = work.run(&networks)?;
    println!("{} pictures scored, {} already were", outcome.scored, outcome.reused);
    match outcome.summary {
        Some(summary) => {
            let means = &summary.means;
            println!("DINO {:.4}  CLIP-I {:.4}  CLIP-T {:.4}", means.dino, means.clip_i, means.clip_t);
            if let Some(crops) = &means.crops {
                println!(
                    "by subjects found ({:.1} %): DINO {:.4}  CLIP-I {:.4}",
                    100.0 * crops.found,
                    crops.dino,
                    crops.clip_i
                );
            }
            println!("results in {}", work.out.display());
        }
        None => println!("{} pictures are left to other shards; no results yet", outcome.left),
    }
    Ok(())
}

/// The drawing of a sample of a row.
pub fn drawing(folder: &Path, row: usize, sample: usize) -> PathBuf {
    folder.join(format!("{row}_{sample}.png"))
}

/// One process's part of an evaluation.
pub struct Work {
    pub benchmark: Benchmark,
    pub drawings: PathBuf,
    /// Drawings of each row, at least 1.
    pub samples: usize,
    pub out: PathBuf,
    pub shard: Shard,
}

/// What [`Work::run`] did.
#[derive(Debug)]
pub struct Outcome {
    pub scored: usize,
    /// Pictures of any shard whose scores were there.
    pub reused: usize,
    /// Pictures without a score, all of other shards.
    pub left: usize,
    /// There if no picture is left.
    pub summary: Option<Summary>,
}

impl Work {
    /// Row and sample of every drawing.
    fn wanted(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        (0..self.benchmark.rows.len()).flat_map(|row| (0..self.samples).map(move |sample| (row, sample)))
    }

    /// Fails with a list of every drawing that is not there: a mean over the rest would not be the benchmark's.
    pub fn check_drawings(&self) -> Result<()> {
        let missing: Vec<String> = self
            .wanted()
            .map(|(row, sample)| drawing(&self.drawings, row, sample))
            .filter(|path| !path.is_file())
            .map(|path| path.file_name().unwrap_or_default().to_string_lossy().into_owned())
            .collect();
        if !missing.is_empty() {
            bail!(
                "{} of {} drawings are missing in {}: {}",
                missing.len(),
                self.benchmark.rows.len() * self.samples,
                self.drawings.display(),
                missing.join(" ")
            );
        }
        Ok(())
    }

    /// Scores what this shard has to and nobody has yet; writes the results if that leaves nothing.
    pub fn run(&self, scorer: &dyn Scorer) -> Result<Outcome> {
        self.check_drawings()?;
        std::fs::create_dir_all(&self.out).with_context(|| format!("create {}", self.out.display()))?;
        let mut ledger = ledger::Ledger::open(&self.out, self.shard)?;
        let judge = judge::Judge::new(scorer, &self.benchmark)?;
        let mut inputs: BTreeMap<(usize, usize), String> = BTreeMap::new();
        for (row, sample) in self.wanted() {
            let file = read(&drawing(&self.drawings, row, sample))?;
            inputs.insert((row, sample), judge.inputs(&self.benchmark.rows[row], &file));
        }
        let current = |score: &PictureScore| inputs.get(&(score.row, score.sample)) == Some(&score.inputs);
        let done = ledger::read_all(&self.out, current)?;
        let mut scored = 0;
        for (number, (row, sample)) in self.wanted().enumerate() {
            if !self.shard.holds(number) || done.contains_key(&(row, sample)) {
                continue;
            }
            let path = drawing(&self.drawings, row, sample);
            let score = judge
                .score(row, sample, &path, &read(&path)?)
                .with_context(|| format!("score {}", path.display()))?;
            ledger.add(&score)?;
            scored += 1;
            if scored % 100 == 0 {
                eprintln!("{scored} pictures scored");
            }
        }
        let scores = ledger::read_all(&self.out, current)?;
        let left = inputs.len() - scores.len();
        let summary = if left == 0 { Some(self.write_results(&scores, scorer.identity())?) } else { None };
        Ok(Outcome { scored, reused: done.len(), left, summary })
    }

    fn write_results(&self, scores: &ledger::Scores, scorer: &str) -> Result<Summary> {
        let summary = Summary::of(&self.benchmark, scores, self.samples, scorer);
        let mut json = serde_json::to_vec_pretty(&summary).context("print the results")?;
        json.push(b'\n');
        let html = page::render(&self.benchmark, &summary, scores, &self.drawings)?;
        self.write("pictures.csv", summary::csv(&self.benchmark, scores).as_bytes())?;
        self.write("results.html", html.as_bytes())?;
        self.write("results.json", &json)?;
        Ok(summary)
    }

    /// Whole or not at all: two shards that end together both write, the same.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.out.join(name);
        whole_file::write(&path, bytes).with_context(|| format!("write {}", path.display()))
    }
}

/// The bytes of a picture file of a size that can be decoded.
fn read(path: &Path) -> Result<Vec<u8>> {
    let length = std::fs::metadata(path).with_context(|| format!("open {}", path.display()))?.len();
    ensure!(length <= MAX_FILE_BYTES, "{} is larger than {MAX_FILE_BYTES} bytes", path.display());
    std::fs::read(path).with_context(|| format!("read {}", path.display()))
}

#[cfg(test)]
mod tests;
