//! A path that is mistyped in the spec, as a person meets it: the job fails within seconds, and every command says where.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use crescendo_tests::{Up, lora_spec, write_subjects};

/// Far below the minutes that units quarantined one by one would take.
const LIMIT: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_mistyped_path_fails_the_job_within_seconds_and_is_named_everywhere() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    write_subjects(&folder.join("subjects"), 40)?;
    let up = Up::start(folder, &["--curators", "2", "--trainers", "1"], &[]).await?;
    let spec = lora_spec("base.safetensors", 1, 2, 100);
    let import =
        spec.replace("source: compose, subjects: subjects, panel: 16", "source: import, path: uno-1n");
    ensure!(import != spec, "the spec is another:\n{spec}");
    let compose = spec.replace("subjects: subjects", "subjects: subjectz");
    for (name, spec, path) in [("import", import, "uno-1n"), ("compose", compose, "subjectz")] {
        let path = folder.canonicalize()?.join(path).display().to_string();
        let file = format!("{name}.yaml");
        std::fs::write(folder.join(&file), spec)?;
        let mut submit = tokio::process::Command::from(up.command(&["submit", &file, "--watch"])?);
        let ended = submit.stdin(Stdio::null()).kill_on_drop(true).output();
        let done = tokio::time::timeout(LIMIT, ended).await.context("the job does not end")??;
        let (out, err) = (String::from_utf8(done.stdout)?, String::from_utf8(done.stderr)?);
        ensure!(done.status.code() == Some(4), "{}:\n{out}\n{err}", done.status);
        let job_id = out.lines().next().context("no job id")?;
        let last = out.lines().last().unwrap_or_default();
        ensure!(last.contains("failed") && last.contains(&path), "watch does not name {path}:\n{out}");
        for command in ["get", "explain", "watch"] {
            let done = up.command(&[command, job_id])?.stdin(Stdio::null()).output()?;
            let said = String::from_utf8(done.stdout)?;
            ensure!(said.contains(&path), "{command} does not name {path}:\n{said}");
            ensure!(!said.contains("add curators"), "{command} advises what would not help:\n{said}");
            let code = if command == "watch" { 4 } else { 0 };
            ensure!(done.status.code() == Some(code), "{command} ended with {}", done.status);
        }
        let jobs = up.run(&["jobs"])?;
        let line = jobs.lines().find(|line| line.starts_with(job_id)).context("jobs does not list it")?;
        ensure!(line.contains("failed") && line.contains(&path), "jobs does not name {path}:\n{jobs}");
    }
    Ok(())
}
