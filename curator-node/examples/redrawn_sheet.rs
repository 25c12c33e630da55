//! Makes pairs with second references as stage-2 of `examples/nano-loop.yaml` does, with a LoRA from a file, and prints what
//! becomes of them: `cargo run -p crescendo-curator-node --example redrawn_sheet -- LORA OUT.png [COUNT]`.
//!
//! A row of the sheet has targets with their first reference, the cut, and what was drawn after it.
use crescendo_core::rejection::Rejection;
use crescendo_core::spec::{DataSource, JobSpec, RecomposeSpec};
use crescendo_curator_node::filters::similarity::SimilarityFilter;
use crescendo_curator_node::paths::PathResolver;
use crescendo_curator_node::pipeline::{ModelContext, Trained, TrainedFile};
use crescendo_curator_node::sources::recompose::{ParentPairs, Recomposer};
use crescendo_dataset::pair::Pair;
use image::{GenericImage, Rgb, RgbImage};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

const COLUMNS: u32 = 8;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    anyhow::ensure!(args.len() >= 3, "usage: redrawn_sheet LORA OUT.png [COUNT]");
    let count: u32 = args.get(3).and_then(|text| text.parse().ok()).unwrap_or(128);
    let yaml = std::fs::read("examples/nano-loop.yaml")?;
    let mut job: JobSpec =
        crescendo_core::spec::parse(&yaml).map_err(|problems| anyhow::anyhow!("{problems:?}"))?;
    let paths = PathResolver::new(&std::env::current_dir()?, "", crescendo_core::reach::Reach::Everything);
    let trained = Trained::Adapter(Arc::new(TrainedFile::new(Path::new(&args[1]), ())));
    let models = ModelContext { trained: Some(trained), ..ModelContext::default() };
    let limits = job.stages[1].data.filter.similarity.clone().expect("the example has a filter");
    let filter = SimilarityFilter::open(&limits, &paths.resolve(&limits.encoder)?, models.device)?;
    let stop = AtomicBool::new(false);
    let unit = |job: &JobSpec, filter: Option<SimilarityFilter>| {
        let recomposer = Recomposer::open(job, &job.stages[1], 1, filter, &paths, &models)?;
        recomposer.unit(0, count, ParentPairs::default(), &stop)
    };
    let began = std::time::Instant::now();
    let made = unit(&job, Some(filter))?;
    println!("{count} candidates in {:.1} s", began.elapsed().as_secs_f64());
    let DataSource::Recompose(RecomposeSpec { crop, .. }) = job.stages[1].data.source.clone() else {
        anyhow::bail!("stage-2 does not redraw")
    };
    job.stages[1].data.source = DataSource::Crop(crop);
    let cuts = unit(&job, None)?;

    let mut reasons: BTreeMap<&str, u32> = BTreeMap::new();
    let mut kept: Vec<(&Pair, &RgbImage)> = Vec::new();
    for (pair, cut) in made.candidates.iter().zip(&cuts.candidates) {
        *reasons
            .entry(pair.as_ref().map_or_else(|reason: &Rejection| reason.name(), |_| "accepted"))
            .or_default() += 1;
        if let (Ok(pair), Ok(cut)) = (pair, cut) {
            kept.push((pair, &cut.references[1]));
        }
    }
    for (reason, count_of) in &reasons {
        println!("{reason:20} {count_of:4}  {:5.1} %", 100.0 * f64::from(*count_of) / f64::from(count));
    }
    let mut cosines = made.cosines.clone();
    cosines.sort_by(f64::total_cmp);
    let at = |share: f64| cosines.get((share * cosines.len() as f64) as usize).copied().unwrap_or(f64::NAN);
    println!("cosines of cut and redrawn: 5 % {:.2}, median {:.2}, 95 % {:.2}", at(0.05), at(0.5), at(0.95));
    let rows = u32::try_from(kept.len())?.div_ceil(COLUMNS).max(1);
    let mut sheet = RgbImage::from_pixel(COLUMNS * 140, rows * 36, Rgb([255; 3]));
    for ((pair, cut), n) in kept.iter().zip(0u32..) {
        let (x, y) = (n % COLUMNS * 140 + 2, n / COLUMNS * 36 + 2);
        for (picture, at) in
            [&pair.target, &pair.references[0], cut, &pair.references[1]].into_iter().zip(0u32..)
        {
            sheet.copy_from(picture, x + 34 * at, y)?;
        }
    }
    let (width, height) = (sheet.width() * 2, sheet.height() * 2);
    image::imageops::resize(&sheet, width, height, image::imageops::FilterType::Nearest).save(&args[2])?;
    Ok(())
}
