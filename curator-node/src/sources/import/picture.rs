//! The pictures that labels name: found below the data set's folder alone, and brought to a training size.

use crate::images;
use crescendo_core::rejection::Rejection;
use crescendo_core::spec::Orientation;
use crescendo_dataset::pictures::bucket::choose;
use crescendo_model::pictures::bucket::stretched;
use image::RgbImage;
use std::path::{Component, Path, PathBuf};

/// How a data set's pictures are taken.
#[derive(Clone, Copy, Debug)]
pub struct PictureRule {
    /// They go to the nearest aspect bucket at this size, pixels.
    pub resolution: u32,
    pub orientation: Orientation,
}

impl PictureRule {
    /// The picture at `path` below one of `folders`, the first that has it. It lies below `root`, which has no links in it.
    pub fn read(self, root: &Path, folders: &[&Path], path: &str) -> Result<RgbImage, Rejection> {
        let relative = Path::new(path);
        if path.is_empty()
            || path.contains('\0')
            || !relative.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
        {
            return Err(Rejection::BadPath);
        }
        // Links are followed first: an archive may bring links of its own.
        let mut found = folders.iter().filter_map(|folder| folder.join(relative).canonicalize().ok());
        let file: PathBuf = found.next().ok_or(Rejection::MissingFile)?;
        if !file.starts_with(root) {
            return Err(Rejection::BadPath);
        }
        let facts = std::fs::metadata(&file).map_err(|_| Rejection::MissingFile)?;
        if !facts.is_file() || facts.len() > super::MAX_FILE_BYTES {
            return Err(Rejection::UnreadableImage);
        }
        let bytes = std::fs::read(&file).map_err(|_| Rejection::UnreadableImage)?;
        let decoded = images::decode_as(&bytes, self.orientation)?;
        if decoded.width().min(decoded.height()) < (self.resolution / 4).max(8) {
            return Err(Rejection::TooSmall);
        }
        let size = choose(&[(decoded.height(), decoded.width())], self.resolution);
        let size = size.map_err(|_| Rejection::UnreadableImage)?;
        stretched(&decoded, size).map_err(|_| Rejection::UnreadableImage)
    }
}

/// A caption on one line. Control characters, and those that turn the direction of what follows, have no place in one;
/// text that runs from right to left does.
pub fn caption(text: &str) -> Result<String, Rejection> {
    let steers = |c: char| {
        (c.is_control() && !c.is_whitespace())
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if words.is_empty() || words.chars().any(steers) || words.chars().nth(MAX_CAPTION_CHARS).is_some() {
        return Err(Rejection::BadCaption);
    }
    Ok(words)
}

/// Characters of a caption beyond which it is none.
const MAX_CAPTION_CHARS: usize = 4096;
