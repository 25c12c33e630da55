//! Where the programs under test are.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

/// The binary of this name, in the folder of the running program or, for a test, in the one above.
pub fn binary(name: &str) -> Result<PathBuf> {
    let program = std::env::current_exe().context("find the running program")?;
    let found =
        program.ancestors().skip(1).take(2).map(|folder| folder.join(name)).find(|path| path.exists());
    found.with_context(|| format!("{name} is not built; run: cargo build --workspace --bins"))
}
