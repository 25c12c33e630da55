//! PNG files that say how they were made.

use std::path::Path;

use anyhow::{Context as _, Result};
use crescendo_dataset::whole_file;
use image::RgbImage;

/// Keyword of the text chunk.
pub const KEYWORD: &str = "crescendo";

/// Writes `picture` with `settings` in a text chunk; `path` never holds half a file.
pub fn save(path: &Path, picture: &RgbImage, settings: &str) -> Result<()> {
    let write = || -> Result<()> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, picture.width(), picture.height());
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.add_itxt_chunk(KEYWORD.to_owned(), settings.to_owned())?;
        let mut writer = encoder.write_header()?;
        writer.write_image_data(picture.as_raw())?;
        writer.finish()?;
        Ok(whole_file::write(path, &bytes)?)
    };
    write().with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_and_settings_are_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let picture = RgbImage::from_fn(5, 3, |x, y| image::Rgb([(x * 50) as u8, (y * 80) as u8, 7]));
        save(&path, &picture, r#"{"prompt":"ein Löwe"}"#).unwrap();
        assert_eq!(image::open(&path).unwrap().to_rgb8(), picture);
        let file = std::io::BufReader::new(std::fs::File::open(&path).unwrap());
        let reader = png::Decoder::new(file).read_info().unwrap();
        let chunk = &reader.info().utf8_text[0];
        assert_eq!(
            (chunk.keyword.as_str(), chunk.get_text().unwrap().as_str()),
            ("crescendo", r#"{"prompt":"ein Löwe"}"#)
        );
        assert!(save(&folder.path().join("absent/a.png"), &picture, "").is_err());
    }
}
