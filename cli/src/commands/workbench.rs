//! Commands that need libtorch are handed over to `crescendo-workbench`, so that this binary starts without it.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;

use crate::failure::Failure;
use crate::up::binaries;

/// Becomes `crescendo-workbench COMMAND ARGS`. Returns only if that fails.
pub fn exec(command: &str, args: &[OsString]) -> Result<(), Failure> {
    let program = binaries::find("crescendo-workbench")?;
    let error = std::process::Command::new(&program).arg(command).args(args).exec();
    Err(Failure::other(format!("start {}: {error}", program.display())))
}
