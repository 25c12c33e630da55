//! Draws pictures of two panels with the shipped base, splits and filters them, and prints what becomes of them:
//! `cargo run -p crescendo-curator-node --example drawn_sheet -- OUT.png [COUNT] [STEPS] [NAME_SHARE] [BASE] [TRUE_CFG]`.
//!
//! The sheet has each drawing with its panels as they were split, framed green if the pair is kept, else red.
use crescendo_core::spec::{DataSource, DrawSpec, JobSpec};
use crescendo_curator_node::filters::similarity::SimilarityFilter;
use crescendo_curator_node::paths::PathResolver;
use crescendo_curator_node::pipeline::ModelContext;
use crescendo_curator_node::sources::generate::Generator;
use crescendo_curator_node::sources::panel_split;
use crescendo_curator_node::sources::prompts::PromptSource;
use image::{GenericImage, Rgb, RgbImage};
use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

const COLUMNS: u32 = 8;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let number = |n: usize, default: f64| args.get(n).and_then(|text| text.parse().ok()).unwrap_or(default);
    let (count, steps, name_share) = (number(2, 256.0) as u32, number(3, 25.0) as u32, number(4, 1.0));
    let yaml = std::fs::read("examples/nano-loop.yaml")?;
    let mut job: JobSpec =
        crescendo_core::spec::parse(&yaml).map_err(|problems| anyhow::anyhow!("{problems:?}"))?;
    if let Some(base) = args.get(5).filter(|base| !base.is_empty()) {
        job.model.weights = Some(base.clone());
    }
    let stage = &job.stages[0];
    let DataSource::Generate(spec) = &stage.data.source else { anyhow::bail!("stage-1 does not draw") };
    let mut spec = spec.clone();
    spec.draw = DrawSpec { steps, true_cfg: number(6, 1.0), ..spec.draw };
    spec.name_share = name_share;
    let paths = PathResolver::new(&std::env::current_dir()?, "", crescendo_core::reach::Reach::Everything);
    let models = ModelContext::default();
    let generator = Generator::open(&spec, &job, stage, 0, &paths, PromptSource::default(), &models)?;
    let limits = stage.data.filter.similarity.clone().expect("the example has a filter");
    let filter = SimilarityFilter::open(&limits, &paths.resolve(&limits.encoder)?, models.device)?;

    let stop = AtomicBool::new(false);
    let began = std::time::Instant::now();
    let drawings = generator.drawings(0, count, &stop)?;
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{count} drawings of {steps} steps in {seconds:.1} s: {:.2} a second",
        f64::from(count) / seconds
    );
    let made = generator.unit(0, count, &stop)?;

    let mut reasons: BTreeMap<&str, u32> = BTreeMap::new();
    let mut cosines: Vec<f64> = Vec::new();
    let rows = count.div_ceil(COLUMNS);
    let mut sheet = RgbImage::from_pixel(COLUMNS * 136, rows * 36, Rgb([255; 3]));
    let mut places: Vec<f32> = Vec::new();
    for ((drawing, candidate), n) in drawings.iter().zip(made.candidates).zip(0u32..) {
        let (x, y) = (n % COLUMNS * 136 + 2, n / COLUMNS * 36 + 2);
        let mut panels: Vec<RgbImage> = Vec::new();
        let reason = match candidate {
            Err(reason) => reason.name(),
            Ok(pair) => {
                if let Ok(split) = panel_split::find(&drawing.picture, drawing.arrangement) {
                    let middle = (split.first_end + split.second_start) as f32 / 2.0;
                    places.push(middle / drawing.picture.width() as f32);
                }
                panels = vec![pair.references[0].clone(), pair.target.clone()];
                let judged = filter.judge(vec![pair])?.remove(0);
                cosines.extend(judged.cosines);
                judged.outcome.err().map_or("accepted", |rejected| rejected.reason.name())
            }
        };
        *reasons.entry(reason).or_default() += 1;
        let colour = Rgb(if reason == "accepted" { [0, 160, 0] } else { [210, 0, 0] });
        for (dx, dy) in (0..134).flat_map(|dx| (0..34).map(move |dy| (dx, dy))) {
            sheet.put_pixel(x - 1 + dx, y - 1 + dy, colour);
        }
        sheet.copy_from(&drawing.picture, x, y)?;
        for (panel, at) in panels.iter().zip([x + 66, x + 100]) {
            sheet.copy_from(panel, at, y)?;
        }
        if n < 24 {
            println!("{n:3} {reason:18} {}", drawing.caption);
        }
    }
    for (reason, count_of) in &reasons {
        println!("{reason:20} {count_of:4}  {:5.1} %", 100.0 * f64::from(*count_of) / f64::from(count));
    }
    cosines.sort_by(f64::total_cmp);
    let at = |share: f64| cosines.get((share * cosines.len() as f64) as usize).copied().unwrap_or(f64::NAN);
    println!("cosines of split panels: 5 % {:.2}, median {:.2}, 95 % {:.2}", at(0.05), at(0.5), at(0.95));
    places.sort_by(f32::total_cmp);
    println!("border, share of the width: {:?} to {:?}", places.first(), places.last());
    let scale = 2;
    let (width, height) = (sheet.width() * scale, sheet.height() * scale);
    image::imageops::resize(&sheet, width, height, image::imageops::FilterType::Nearest).save(&args[1])?;
    Ok(())
}
