//! Every program that computes looks for CUDA: one that does not can never use a GPU, and says nothing of it.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use crescendo_tests::binary;

/// Loading libtorch takes seconds on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// What the dynamic loader is asked for first on the way to a GPU.
const DRIVER: &str = "libcuda.so.1";

#[test]
fn programs_that_compute_look_for_cuda() -> Result<()> {
    let node = ["--dev", "--node-id", "n-1", "--controller", "127.0.0.1:9"];
    let rank = "rank --agent 127.0.0.1:9 --job j --stage s --generation 1 --rank 0 --bind-ip 127.0.0.1 --dev \
                --scratch . --cache-gib 1 --library-root .";
    let agent = ["agent", "--scratch", "."];
    looks_for_cuda("crescendo-curator-node", &node)?;
    looks_for_cuda("crescendo-trainer-node", &[&agent[..], &node].concat())?;
    looks_for_cuda("crescendo-trainer-node", &rank.split_whitespace().collect::<Vec<_>>())?;
    looks_for_cuda(
        "crescendo-workbench",
        &["generate", "--prompt", "x", "--weights", "none.safetensors", "--out", "x.png"],
    )?;
    looks_for_cuda(
        "crescendo-workbench",
        &["report", "--job", "none.json", "--object-store", ".", "--out", "."],
    )
}

/// Starts a program and waits until the loader has been asked for the driver.
fn looks_for_cuda(program: &str, arguments: &[&str]) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut child = Command::new(binary(program)?)
        .args(arguments)
        .current_dir(folder.path())
        .env("LD_DEBUG", "libs")
        .env("LD_DEBUG_OUTPUT", folder.path().join("loader"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {program}"))?;
    let found = until_found(folder.path(), &mut child);
    let _ = child.kill();
    let said = child.wait_with_output()?.stderr;
    let words = || format!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&said));
    found.with_context(words)
}

fn until_found(folder: &Path, child: &mut Child) -> Result<()> {
    let started = Instant::now();
    while started.elapsed() < LIMIT {
        // Asked before the files are read: what it wrote until its end is there.
        let ended = child.try_wait()?;
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_file() && String::from_utf8_lossy(&std::fs::read(&path)?).contains(DRIVER) {
                return Ok(());
            }
        }
        if let Some(status) = ended {
            bail!("ended ({status}) without having looked for {DRIVER}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    bail!("has not looked for {DRIVER} within {LIMIT:?}")
}
