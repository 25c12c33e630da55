//! Commands that need libtorch are handed over to `crescendo-workbench`, so that this binary starts without it.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;

use crate::failure::Failure;
use crate::up::binaries;

/// Becomes `crescendo-workbench COMMAND ARGS`. Returns only if that fails.
pub fn exec(command: &str, args: &[OsString]) -> Result<(), Failure> {
    let program = binaries::find("crescendo-workbench")?;
    // Its help and errors then name the command that was typed.
    let error = std::process::Command::new(&program).arg0("crescendo").arg(command).args(args).exec();
    Err(Failure::other(format!("start {}: {error}", program.display())))
}
