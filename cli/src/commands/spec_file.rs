//! The file of a spec.

use std::io::Read as _;
use std::path::Path;

use crescendo_core::spec::MAX_SPEC_BYTES;

use crate::failure::Failure;

/// The bytes of a spec, one more than allowed at most; `-` is standard input.
pub fn read_spec(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let most = MAX_SPEC_BYTES as u64 + 1;
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(most).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(most).read_to_end(&mut bytes))
    };
    read.map_err(Failure::from_error(format!("read {}", path.display())))?;
    Ok(bytes)
}
