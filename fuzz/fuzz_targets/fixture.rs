//! A fixture of any bytes (a sidecar, a zero byte, tensors) is opened or refused, and what it expects can be listed.
#![no_main]

use crescendo_workbench::parity::fixture::Fixture;
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a folder"));

fuzz_target!(|bytes: &[u8]| {
    let (sidecar, tensors) = match bytes.iter().position(|byte| *byte == 0) {
        Some(end) => (&bytes[..end], &bytes[end + 1..]),
        None => (bytes, &[][..]),
    };
    let path = FOLDER.path().join("f.json");
    std::fs::write(&path, sidecar).expect("write the sidecar");
    std::fs::write(path.with_extension("safetensors"), tensors).expect("write the tensors");
    let Ok(fixture) = Fixture::open(&path, crescendo_model::tch::Device::Cpu) else { return };
    let _ = fixture.config();
    for name in fixture.expected() {
        let _ = fixture.tolerance(&name);
        let _ = fixture.shape(&name);
    }
});
