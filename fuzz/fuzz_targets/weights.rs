//! A weight file of any bytes is opened or refused; the header of one that is opened can be listed, and its small tensors read.
#![no_main]

use crescendo_model::inspect::inspect;
use crescendo_model::weight_files::WeightFiles;
use crescendo_model::weights::TensorFile;
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

/// Tensors larger than this are not read: memory is not what is tested.
const MAX_TENSOR_VALUES: i64 = 1 << 16;

static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a folder"));

fuzz_target!(|bytes: &[u8]| {
    let path = FOLDER.path().join("w.safetensors");
    std::fs::write(&path, bytes).expect("write the file");
    let Ok(file) = TensorFile::open(&path) else { return };
    let _ = file.strings();
    for name in file.names() {
        let (shape, _) = file.info(&name).expect("a listed tensor is known");
        let values = shape.iter().try_fold(1i64, |product, side| product.checked_mul(*side));
        if values.is_some_and(|values| (0..=MAX_TENSOR_VALUES).contains(&values))
            && let Ok(tensor) = file.tensor(&name)
        {
            assert_eq!(tensor.size(), shape, "{name}");
        }
    }
    drop(file);
    if let Ok(files) = WeightFiles::open(&path) {
        let _ = inspect(&files.header());
    }
});
