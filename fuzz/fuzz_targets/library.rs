//! An index, a table of captions, a caption or a picture of any bytes gives subjects or an error, and no file outside of the folder.
#![no_main]

use crescendo_dataset::Library;
use libfuzzer_sys::fuzz_target;
use std::path::{Component, Path};
use std::sync::LazyLock;

/// Longer side that pictures are shrunk to.
const SIDE: usize = 32;

struct Folders {
    indexed: tempfile::TempDir,
    listed: tempfile::TempDir,
    captioned: tempfile::TempDir,
}

static FOLDERS: LazyLock<Folders> = LazyLock::new(|| {
    let folder = || tempfile::tempdir().expect("a folder");
    Folders { indexed: folder(), listed: folder(), captioned: folder() }
});

fuzz_target!(|bytes: &[u8]| {
    let Folders { indexed, listed, captioned } = &*FOLDERS;
    let write = |folder: &tempfile::TempDir, file: &str| {
        std::fs::write(folder.path().join(file), bytes).expect("write the input");
    };
    write(indexed, "index.json");
    write(listed, "captions.csv");
    write(captioned, "fox.txt");
    for folder in [indexed, listed, captioned] {
        write(folder, "fox.png");
        look_at(folder.path());
    }
});

fn look_at(folder: &Path) {
    let Ok(library) = Library::open_subjects(folder, SIDE) else { return };
    for (entry, subject) in library.entries().iter().enumerate() {
        assert!(!subject.files.is_empty());
        for file in &subject.files {
            assert!(Path::new(file).components().all(|part| matches!(part, Component::Normal(_))), "{file}");
        }
        if let Ok(raster) = library.raster(entry, 0) {
            assert!(raster.width().max(raster.height()) <= SIDE);
        }
    }
}
