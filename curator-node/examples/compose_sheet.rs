//! Draws a sheet of composed pairs: `cargo run -p crescendo-curator-node --example compose_sheet -- OUT.png [LAYOUT] [REFERENCES]`.
use crescendo_core::spec::{ComposeLayout, ComposeSpec};
use crescendo_curator_node::sources::compose::Composer;
use image::{GenericImage, RgbImage};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let layout = match args.get(2).map(String::as_str) {
        Some("diptych") => ComposeLayout::Diptych,
        Some("mixed") => ComposeLayout::Mixed,
        _ => ComposeLayout::Single,
    };
    let references: u32 = args.get(3).and_then(|r| r.parse().ok()).unwrap_or(1);
    let spec = ComposeSpec {
        subjects: ".deps/demo/subjects".into(),
        photos: Some(".deps/demo/photos".into()),
        layout,
        panel: 32,
        name_share: 1.0,
        hold_out: Vec::new(),
        hold_out_one_in: 12,
    };
    let composer =
        Composer::open(&spec, references, 1, 0, std::path::Path::new(".")).expect("open the demo's library");
    let mut sheet = RgbImage::new(34 * 3 * 6, 34 * 6);
    for n in 0..36 {
        let pair = composer.candidate(u64::from(n), 0).expect("compose");
        println!("{:2} {}", n, pair.prompt);
        let (x, y) = (n % 6 * 102, n / 6 * 34);
        sheet.copy_from(&pair.target, x, y).expect("fits");
        for (r, reference) in pair.references.iter().take(2).enumerate() {
            sheet.copy_from(reference, x + 34 * (1 + r as u32), y).expect("fits");
        }
    }
    let big = image::imageops::resize(
        &sheet,
        sheet.width() * 3,
        sheet.height() * 3,
        image::imageops::FilterType::Nearest,
    );
    big.save(&args[1]).expect("write the sheet");
    let start = std::time::Instant::now();
    for n in 0..2000 {
        composer.candidate(n / 64 + 1000, (n % 64) as u32).expect("compose");
    }
    println!("{:.0} pairs/s", 2000.0 / start.elapsed().as_secs_f64());
}
