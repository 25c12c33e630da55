//! Where pictures are written to: looked at before anything is loaded, since drawing can take minutes.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use crescendo_dataset::whole_file::folder_of;

use super::png::KEYWORD;

/// Refuses a path that cannot be written, and one where there is something else than a picture that `generate` has drawn:
/// that can be drawn again, a photograph cannot.
pub fn check(path: &Path) -> Result<()> {
    let (shown, folder) = (path.display(), folder_of(path));
    ensure!(folder.is_dir(), "--out {shown}: there is no folder {}; make it first", folder.display());
    tempfile::tempfile_in(folder)
        .with_context(|| format!("--out {shown}: write into {}", folder.display()))?;
    let Ok(there) = std::fs::symlink_metadata(path) else { return Ok(()) };
    ensure!(
        there.is_file() && was_drawn(path),
        "--out {shown} is there, and is no picture that generate has drawn; name another file"
    );
    Ok(())
}

/// Whether it carries the settings of a drawing.
fn was_drawn(path: &Path) -> bool {
    let read = || -> Option<bool> {
        let reader = ::png::Decoder::new(BufReader::new(File::open(path).ok()?)).read_info().ok()?;
        Some(reader.info().utf8_text.iter().any(|chunk| chunk.keyword == KEYWORD))
    };
    read().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use image::RgbImage;

    use super::super::png::save;
    use super::*;

    #[test]
    fn only_a_drawing_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let refused = |name: &str| format!("{:#}", check(&path(name)).unwrap_err());
        RgbImage::new(2, 2).save(path("photo.png")).unwrap();
        std::fs::write(path("notes.txt"), "mine").unwrap();
        std::fs::create_dir(path("folder")).unwrap();
        save(&path("drawn.png"), &RgbImage::new(2, 2), "{}").unwrap();
        check(&path("new.png")).unwrap();
        check(&path("drawn.png")).unwrap();
        for name in ["photo.png", "notes.txt", "folder"] {
            assert!(refused(name).contains(&format!("{name} is there")), "{}", refused(name));
        }
        assert!(refused("absent/a.png").contains("there is no folder"), "{}", refused("absent/a.png"));
    }
}
