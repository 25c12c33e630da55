//! The real `crescendo` binary against a controller that plays a part.

mod commands;
mod comparing;
mod contexts;
mod cp;
mod doctor;
mod fake;
mod following;
mod library;
mod pairs;
mod submitting;
mod up;

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::process::Command;

/// Much longer than anything here takes.
const DEADLINE: Duration = Duration::from_secs(60);

/// `crescendo`, with nothing of the caller's environment that it reads.
fn crescendo(home: &Path) -> Command {
    at(Path::new(env!("CARGO_BIN_EXE_crescendo")), home)
}

fn at(program: &Path, home: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CRESCENDO_") {
            command.env_remove(name);
        }
    }
    command.env("XDG_STATE_HOME", home).env("XDG_CONFIG_HOME", home).stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Runs to the end: exit code, standard output, standard error.
async fn run(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } =
        tokio::time::timeout(DEADLINE, command.output()).await.expect("it ends in time").expect("it starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("it prints text");
    (status.code().unwrap_or(-1), text(stdout), text(stderr))
}
