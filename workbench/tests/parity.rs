//! The golden fixtures through `parity`, and what it says about damaged ones.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, ensure};
use serde_json::Value;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

fn command(dir: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_crescendo-workbench"));
    command.arg("parity").arg(dir).args(more);
    command
}

fn parity(dir: &Path, more: &[&str]) -> anyhow::Result<Output> {
    command(dir, more).output().context("run crescendo-workbench")
}

fn report(output: &Output) -> anyhow::Result<Value> {
    serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

/// A folder with copies of the named fixtures.
fn copies(names: &[&str]) -> anyhow::Result<tempfile::TempDir> {
    let folder = tempfile::tempdir()?;
    for name in names {
        for extension in ["json", "safetensors"] {
            let file = format!("{name}.{extension}");
            std::fs::copy(golden().join(&file), folder.path().join(&file)).with_context(|| file.clone())?;
        }
    }
    Ok(folder)
}

fn fixture<'a>(report: &'a Value, name: &str) -> anyhow::Result<&'a Value> {
    let fixtures = report["fixtures"].as_array().context("no fixtures")?;
    fixtures
        .iter()
        .find(|fixture| fixture["name"] == name)
        .with_context(|| format!("{name} is not in the report"))
}

/// Kernels that the libraries below libtorch choose on other processors, by the variables that hold them to those.
/// oneDNN and ATen are held to AVX2 together: ATen alone makes attention in bfloat16 fail where oneDNN has it.
const KERNEL_SETS: [&[(&str, &str)]; 4] = [
    &[],
    &[("MKL_ENABLE_INSTRUCTIONS", "AVX2")],
    &[("MKL_CBWR", "COMPATIBLE")],
    &[("MKL_ENABLE_INSTRUCTIONS", "AVX2"), ("ONEDNN_MAX_CPU_ISA", "AVX2"), ("ATEN_CPU_CAPABILITY", "avx2")],
];

#[test]
fn golden_fixtures_pass_with_the_kernels_of_every_processor() -> anyhow::Result<()> {
    for kernels in KERNEL_SETS {
        golden_fixtures_pass(kernels).with_context(|| format!("with {kernels:?}"))?;
    }
    Ok(())
}

fn golden_fixtures_pass(kernels: &[(&str, &str)]) -> anyhow::Result<()> {
    let kinds = [
        "ae",
        "clip_text",
        "clip_vision",
        "denoise",
        "dinov2",
        "flux",
        "image_preproc_bucket",
        "image_preproc_clip_dino",
        "image_preproc_ref",
        "lora",
        "metrics",
        "owlv2",
        "schedule",
        "t5",
        "train_step",
        "unope",
    ];
    let output = command(&golden(), &["--only", &kinds.join(","), "-o", "json"])
        .envs(kernels.iter().copied())
        .output()
        .context("run crescendo-workbench")?;
    let report = report(&output)?;
    ensure!(output.status.success(), "{report:#}");
    for kind in kinds {
        let fixtures = report["fixtures"].as_array().context("no fixtures")?;
        ensure!(fixtures.iter().any(|fixture| fixture["kind"] == kind), "no fixture of kind {kind}");
    }
    ensure!(fixture(&report, "train_step_dp2")?["passed"] == true, "data-parallel steps were not checked");
    Ok(())
}

#[test]
fn pictures_are_resampled_to_the_very_bytes() -> anyhow::Result<()> {
    let output = parity(&golden(), &["--only", "image_preproc_ref,image_preproc_clip_dino", "-o", "json"])?;
    let report = report(&output)?;
    for name in ["image_preproc_ref", "image_preproc_clip_dino"] {
        let cases = fixture(&report, name)?["cases"].as_array().context("no cases")?;
        let exact =
            cases.iter().filter(|case| case["case"].as_str().is_some_and(|case| !case.contains("tensor")));
        let mut count = 0;
        for case in exact {
            let float = case["case"]
                .as_str()
                .is_some_and(|case| case.ends_with(".pillow") || case.ends_with("_input"));
            let limit = if float { 1e-6 } else { 0.0 };
            let error = case["worst"]["error"].as_f64().context("no error")?;
            ensure!(error <= limit, "{case:#}");
            count += 1;
        }
        ensure!(count > 0, "{name} has no cases");
    }
    Ok(())
}

/// Adds to the last float of `tensor` in a safetensors file.
fn perturb(path: &Path, tensor: &str, by: f32) -> anyhow::Result<()> {
    let mut bytes = std::fs::read(path)?;
    let header_bytes = u64::from_le_bytes(bytes[..8].try_into()?) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + header_bytes])?;
    let end = header[tensor]["data_offsets"][1].as_u64().context("no such tensor")? as usize;
    let at = 8 + header_bytes + end - 4;
    let value = f32::from_le_bytes(bytes[at..at + 4].try_into()?) + by;
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    Ok(std::fs::write(path, bytes)?)
}

#[test]
fn a_number_off_by_more_than_its_tolerance_is_a_miss() -> anyhow::Result<()> {
    let folder = copies(&["flux_tiny_schnell", "schedule", "train_step"])?;
    perturb(&folder.path().join("flux_tiny_schnell.safetensors"), "out.refs2.base", 2e-4)?;
    let adapter = "out.step5.lora.single_blocks.1.processor.proj_lora.up.weight";
    perturb(&folder.path().join("train_step.safetensors"), adapter, 1e-4)?;
    let output = parity(folder.path(), &["-o", "json"])?;
    let report = report(&output)?;
    ensure!(output.status.code() == Some(1), "{report:#}");
    for (name, tensor) in [("flux_tiny_schnell", "out.refs2.base"), ("train_step", adapter)] {
        let misses = fixture(&report, name)?["misses"].as_array().context("no misses")?;
        ensure!(misses.iter().all(|miss| miss["tensor"] == tensor) && !misses.is_empty(), "{misses:?}");
    }
    ensure!(fixture(&report, "schedule")?["passed"] == true, "a sound fixture failed");
    Ok(())
}

#[test]
fn broken_fixtures_are_reported_and_the_rest_goes_on() -> anyhow::Result<()> {
    let folder = copies(&["unope_ids", "flux_tiny_schnell", "schedule", "denoise"])?;
    let file = |name: &str| folder.path().join(name);
    let bytes = std::fs::read(file("flux_tiny_schnell.safetensors"))?;
    std::fs::write(file("flux_tiny_schnell.safetensors"), &bytes[..bytes.len() - 100])?;
    std::fs::remove_file(file("denoise.safetensors"))?;
    std::fs::write(file("schedule.json"), b"{\"fixture\": \"schedule\"")?;
    std::fs::write(file("later.json"), b"{\"fixture\": \"video_tiny\"}")?;
    let output = parity(folder.path(), &["-o", "json"])?;
    let report = report(&output)?;
    ensure!(output.status.code() == Some(1), "{report:#}");
    for (name, word) in [
        ("flux_tiny_schnell", "cut short"),
        ("denoise", "denoise.safetensors"),
        ("schedule", "schedule.json"),
    ] {
        let error = fixture(&report, name)?["error"].as_str().context("no error")?;
        ensure!(error.contains(word), "{name}: {error}");
    }
    ensure!(fixture(&report, "unope_ids")?["passed"] == true, "a sound fixture failed");
    ensure!(report["not_checked"][0]["name"] == "later", "{report:#}");
    Ok(())
}

#[test]
fn checking_nothing_is_a_failure() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let output = parity(folder.path(), &[])?;
    ensure!(output.status.code() == Some(1), "an empty folder passed");
    ensure!(String::from_utf8_lossy(&output.stdout).contains("nothing checked"), "it does not say why");
    let output = parity(&golden(), &["--only", "video"])?;
    ensure!(output.status.code() == Some(1), "no fixture selected passed");
    let output = parity(&folder.path().join("absent"), &[])?;
    ensure!(String::from_utf8_lossy(&output.stderr).contains("absent"), "the folder is not named");
    Ok(())
}
