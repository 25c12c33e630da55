//! A weight file of any bytes is opened or refused; the header of one that is opened can be listed, in whichever form it is, and its
//! small tensors read under their published names.
#![no_main]

use crescendo_model::inspect::inspect;
use crescendo_model::lora_names::published_tensors;
use crescendo_model::naming::Network;
use crescendo_model::weight_files::WeightFiles;
use crescendo_model::weights::TensorFile;
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

/// Tensors larger than this are not read: memory is not what is tested.
const MAX_TENSOR_VALUES: i64 = 1 << 16;

static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a folder"));

fn is_small(shape: &[i64]) -> bool {
    let values = shape.iter().try_fold(1i64, |product, side| product.checked_mul(*side));
    values.is_some_and(|values| (0..=MAX_TENSOR_VALUES).contains(&values))
}

fuzz_target!(|bytes: &[u8]| {
    let path = FOLDER.path().join("w.safetensors");
    std::fs::write(&path, bytes).expect("write the file");
    let Ok(file) = TensorFile::open(&path) else { return };
    let _ = file.strings();
    for name in file.names() {
        let (shape, _) = file.info(&name).expect("a listed tensor is known");
        if is_small(&shape)
            && let Ok(tensor) = file.tensor(&name)
        {
            assert_eq!(tensor.size(), shape, "{name}");
        }
    }
    drop(file);
    let Ok(files) = WeightFiles::open(&path) else { return };
    let _ = inspect(&files.header());
    if files.header().values().all(|tensor| is_small(&tensor.shape)) {
        let _ = published_tensors(&files);
    }
    for network in Network::ALL {
        let Ok(files) = WeightFiles::open_as(&path, network) else { continue };
        for (name, tensor) in files.header() {
            if is_small(&tensor.shape)
                && let Ok(read) = files.tensor(&name)
            {
                assert_eq!(read.size(), tensor.shape, "{name}");
            }
        }
    }
});
