//! Small synthetic subject cut-outs in the layout of the subject library.

use std::path::Path;

use anyhow::{Context as _, Result};
use image::{Rgba, RgbaImage};

/// Side of a cut-out, pixels.
const SIDE: u32 = 48;

/// Writes `count` subjects (discs and squares in distinct colours) with their `index.json` below `dir`.
pub fn write_subjects(dir: &Path, count: u32) -> Result<()> {
    std::fs::create_dir_all(dir).context("make the subject folder")?;
    let mut index = Vec::new();
    for i in 0..count {
        let (id, name) =
            (format!("s{i:03}"), format!("{} shape {i}", if i % 2 == 0 { "round" } else { "square" }));
        let color = Rgba([(i * 67 % 256) as u8, (i * 151 % 256) as u8, (i * 29 % 256) as u8, 255]);
        let picture = RgbaImage::from_fn(SIDE, SIDE, |x, y| {
            let (dx, dy) = (x as f32 - 23.5, y as f32 - 23.5);
            let inside = if i % 2 == 0 { dx.hypot(dy) < 20.0 } else { dx.abs().max(dy.abs()) < 18.0 };
            if inside { color } else { Rgba([0, 0, 0, 0]) }
        });
        let file = format!("{id}.webp");
        picture.save(dir.join(&file)).with_context(|| format!("write {file}"))?;
        index.push(
            serde_json::json!({"id": id, "name": name, "group": "shapes", "file": file, "words": name}),
        );
    }
    std::fs::write(dir.join("index.json"), serde_json::to_vec(&index)?).context("write index.json")
}
