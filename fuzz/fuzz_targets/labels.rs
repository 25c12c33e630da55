//! A label file of any bytes gives candidates, rejections or an error, and never more candidates than asked for.
#![no_main]

use crescendo_core::spec::{Directions, ImportFormat, ImportSpec};
use crescendo_curator_node::sources::import::Uno1m;
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;
use std::sync::atomic::AtomicBool;

const UNIT_SIZE: u32 = 8;
const UNITS: u64 = 4;

static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a folder"));

fuzz_target!(|labels: &[u8]| {
    std::fs::write(FOLDER.path().join("split1.json"), labels).expect("write the labels");
    let spec = ImportSpec {
        path: String::new(),
        format: ImportFormat::Uno1m,
        min_score: 0.0,
        score_disagreement: Default::default(),
        score_invalid: Default::default(),
        directions: Directions::default(),
        orientation: Default::default(),
        resolution: 64,
    };
    let mut source = Uno1m::open(FOLDER.path(), &spec, 1).expect("there is a label file");
    let stop = AtomicBool::new(false);
    for unit in 0..UNITS {
        let Ok(imported) = source.unit(unit, UNIT_SIZE, &stop) else { return };
        assert!(imported.candidates.len() <= UNIT_SIZE as usize);
        if imported.exhausted {
            return;
        }
    }
});
