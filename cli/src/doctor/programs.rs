//! The other programs of Crescendo: found, able to start, of one version; and what the workbench says of libtorch.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::report::Check;
use crate::up::binaries;

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// A program that links libtorch takes some seconds to start from a cold disk.
const START: Duration = Duration::from_secs(30);
/// CUDA takes its time to start.
const WORKBENCH: Duration = Duration::from_secs(120);

pub async fn check() -> Vec<Check> {
    let mut checks = vec![Check::ok("crescendo", format!("version {VERSION}"))];
    for name in ["crescendo-controller", "crescendo-curator-node", "crescendo-trainer-node"] {
        checks.push(match binaries::find(name) {
            // A laptop that only submits needs none of them.
            Err(_) => Check::skipped(name, "not on this machine"),
            Ok(program) => judge(name, &output(&program, &["--version"], START).await),
        });
    }
    checks
}

/// What a program printed, or why it did not end well.
type Printed = Result<String, String>;

fn judge(name: &str, printed: &Printed) -> Check {
    match printed {
        Err(why) if why.contains("shared librar") => Check::failed(
            name,
            why.clone(),
            "install torch 2.11.0 (`make setup` does so in a checkout) and set LD_LIBRARY_PATH to its lib folder",
        ),
        Err(why) => Check::failed(name, why.clone(), "build or install it again"),
        Ok(text) => match text.split_whitespace().last() {
            Some(VERSION) => Check::ok(name, format!("version {VERSION}")),
            other => Check::warning(
                name,
                format!("version {}, this is {VERSION}", other.unwrap_or("unknown")),
                "install all programs of one version: their messages are made for each other",
            ),
        },
    }
}

/// What needs libtorch.
pub async fn workbench(gpu: bool) -> Vec<Check> {
    let name = "libtorch";
    let Ok(program) = binaries::find("crescendo-workbench") else {
        let why = "crescendo-workbench is not on this machine; it looks at libtorch, CUDA and NCCL";
        return vec![if gpu {
            Check::failed(name, why, "install crescendo-workbench beside this program")
        } else {
            Check::skipped(name, why)
        }];
    };
    let args: &[&str] = if gpu { &["doctor", "--gpu", "-o", "json"] } else { &["doctor", "-o", "json"] };
    match output(&program, args, WORKBENCH).await {
        Ok(text) => serde_json::from_str::<Vec<Check>>(&text).unwrap_or_else(|error| {
            let found = format!("crescendo-workbench printed what is not understood: {error}");
            vec![Check::failed(name, found, "install all programs of one version")]
        }),
        Err(why) => vec![judge(name, &Err(why))],
    }
}

/// Standard output of a program that ends well, in time.
pub async fn output(program: &Path, args: &[&str], within: Duration) -> Printed {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    let shown = program.display();
    match tokio::time::timeout(within, command.output()).await {
        Err(_) => Err(format!("{shown} did not end within {} s", within.as_secs())),
        Ok(Err(error)) => Err(format!("{shown} cannot be started: {error}")),
        Ok(Ok(output)) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(Ok(output)) => {
            let text = String::from_utf8_lossy(&output.stderr);
            let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
            Err(format!("{shown}: {} {last}", output.status))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Status;
    use super::*;

    #[test]
    fn versions_and_missing_libraries_are_told_apart() {
        let status = |printed: Printed| judge("p", &printed).status;
        assert_eq!(status(Ok(format!("crescendo-controller {VERSION}\n"))), Status::Ok);
        assert_eq!(status(Ok("crescendo-controller 9.9.9\n".into())), Status::Warning);
        assert_eq!(status(Ok(String::new())), Status::Warning);
        let missing = judge("p", &Err("error while loading shared libraries: libtorch_cpu.so".into()));
        assert!(
            missing.status == Status::Failed && missing.remedy.contains("LD_LIBRARY_PATH"),
            "{missing:?}"
        );
    }

    #[tokio::test]
    async fn a_program_that_fails_or_hangs_is_an_answer_too() {
        let sh = |script: &'static str| async move {
            output(Path::new("/bin/sh"), &["-c", script], Duration::from_millis(300)).await
        };
        assert_eq!(sh("echo yes").await, Ok("yes\n".into()));
        assert!(sh("echo no >&2; exit 3").await.unwrap_err().ends_with("exit status: 3 no"));
        assert!(sh("exec sleep 60").await.unwrap_err().contains("did not end"));
        assert!(output(Path::new("/nowhere"), &[], START).await.unwrap_err().contains("cannot be started"));
    }
}
