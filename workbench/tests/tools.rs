//! `inspect`, `lora` and `bench` as a user calls them.

use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, ensure};
use crescendo_model::lora::BlockSelection;
use crescendo_model::tch::{Device, Kind};
use crescendo_model::weights::{published_strings, save};
use crescendo_model::{Flux, FluxConfig, LoraAdapter};
use serde_json::Value;

fn workbench(folder: &Path, args: &[&str]) -> anyhow::Result<Output> {
    Command::new(env!("CARGO_BIN_EXE_crescendo-workbench"))
        .current_dir(folder)
        .args(args)
        .output()
        .context("run crescendo-workbench")
}

fn json(output: &Output) -> anyhow::Result<Value> {
    serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

fn config() -> FluxConfig {
    FluxConfig { depth: 1, depth_single_blocks: 1, hidden_size: 32, num_heads: 1, ..FluxConfig::nano() }
}

#[test]
fn inspect_ends_with_1_and_names_what_is_wrong() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("base.safetensors");
    let mut tensors = Flux::init(&config(), 1, Kind::BFloat16, Device::Cpu)?.tensors();
    save(&path, &tensors, &published_strings())?;
    let output = workbench(folder.path(), &["inspect", "base.safetensors", "-o", "json"])?;
    ensure!(output.status.code() == Some(0), "{output:?}");
    let found = json(&output)?;
    ensure!(found["family"] == "transformer" && found["config"]["hidden_size"] == 32, "{found:#}");

    drop(tensors.remove("img_in.bias").context("no img_in.bias")?);
    save(&path, &tensors, &published_strings())?;
    let output = workbench(folder.path(), &["inspect", "base.safetensors"])?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.code() == Some(1), "{output:?}");
    ensure!(text.contains("img_in.bias is missing") && text.contains("does not fit: 1 problem(s)"), "{text}");

    let bytes = std::fs::read(&path)?;
    std::fs::write(&path, &bytes[..bytes.len() / 2])?;
    let output = workbench(folder.path(), &["inspect", "base.safetensors"])?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1) && text.contains("cut short"), "{text}");
    Ok(())
}

#[test]
fn an_error_is_one_line_whatever_the_environment_says() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("page.safetensors"), "Access to this model is restricted.".repeat(4))?;
    let run = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_crescendo-workbench"));
        command.current_dir(folder.path()).args(args).env("RUST_BACKTRACE", "full").output()
    };
    for args in [
        &["inspect", "page.safetensors"][..],
        &["inspect", "absent.safetensors"],
        &["lora", "convert", "absent.safetensors", "--to", "published", "--out", "out.safetensors"],
    ] {
        let output = run(args)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success() && said.starts_with("error: "), "{args:?}: {output:?}");
        ensure!(said.trim_end().lines().count() == 1, "{args:?}: {said}");
    }
    let verbose = run(&["inspect", "absent.safetensors", "-v"])?;
    ensure!(
        String::from_utf8_lossy(&verbose.stderr).to_lowercase().contains("stack backtrace"),
        "{verbose:?}"
    );
    Ok(())
}

/// As any other program's: for whom the umask allows, or those that the file before was for.
#[test]
fn outputs_are_for_whom_the_umask_says() -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir()?;
    let mut adapter =
        LoraAdapter::init(&config(), 4, &BlockSelection::all(&config()), 1, Kind::Float, Device::Cpu)?;
    adapter.save(&folder.path().join("dit_lora.safetensors"))?;
    let convert = |umask: &str| {
        let script = format!(
            "umask {umask}; exec \"$0\" lora convert dit_lora.safetensors --to comfyui --out out.safetensors"
        );
        let ran = Command::new("sh")
            .args(["-c", &script, env!("CARGO_BIN_EXE_crescendo-workbench")])
            .current_dir(folder.path())
            .output()?;
        ensure!(ran.status.success(), "{ran:?}");
        let mode = folder.path().join("out.safetensors").metadata()?.permissions().mode() & 0o777;
        Ok(mode)
    };
    ensure!(convert("022")? == 0o644);
    std::fs::remove_file(folder.path().join("out.safetensors"))?;
    ensure!(convert("027")? == 0o640);
    std::fs::set_permissions(folder.path().join("out.safetensors"), std::fs::Permissions::from_mode(0o664))?;
    ensure!(convert("027")? == 0o664, "one that is replaced keeps its own");
    Ok(())
}

#[test]
fn lora_convert_writes_what_inspect_recognises() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let all = BlockSelection::all(&config());
    let mut adapter = LoraAdapter::init(&config(), 4, &all, 1, Kind::Float, Device::Cpu)?;
    adapter.save(&folder.path().join("dit_lora.safetensors"))?;
    for (to, form) in [("published", Value::Null), ("comfyui", "kohya".into()), ("diffusers", "PEFT".into())]
    {
        let output = workbench(
            folder.path(),
            &[
                "lora",
                "convert",
                "dit_lora.safetensors",
                "--to",
                to,
                "--weight",
                "0.5",
                "--out",
                "out.safetensors",
            ],
        )?;
        ensure!(output.status.success(), "{output:?}");
        let found = json(&workbench(folder.path(), &["inspect", "out.safetensors", "-o", "json"])?)?;
        ensure!(found["family"] == "lora" && found["facts"]["rank"] == "4", "{found:#}");
        ensure!(found["fits"] == true && found["problems"] == serde_json::json!([]), "{found:#}");
        let told = found["form"].as_str().map(str::to_owned);
        ensure!(told.is_some() == form.is_string(), "{found:#}");
        ensure!(told.is_none_or(|told| told.contains(form.as_str().unwrap_or_default())), "{found:#}");
        // What was written for others is read again, under the name of a file or of its folder.
        let again = ["lora", "convert", "out.safetensors", "--to", to, "--out", "again.safetensors"];
        let output = workbench(folder.path(), &again)?;
        ensure!(output.status.success(), "{output:?}");
        let read = |name: &str| std::fs::read(folder.path().join(name));
        ensure!(read("again.safetensors")? == read("out.safetensors")?, "{to} is not the same again");
        std::fs::remove_file(folder.path().join("again.safetensors"))?;
    }
    for (file, out, named) in [
        (".", "no/again.safetensors", "there is no folder no"),
        ("absent.safetensors", "again.safetensors", "absent.safetensors"),
        ("pointer.safetensors", "again.safetensors", "git lfs pull"),
    ] {
        std::fs::write(
            folder.path().join("pointer.safetensors"),
            "version https://git-lfs.github.com/spec/v1\n",
        )?;
        let output = workbench(folder.path(), &["lora", "convert", file, "--to", "comfyui", "--out", out])?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success() && text.contains(named), "{text}");
        ensure!(!folder.path().join("again.safetensors").exists(), "a file was written");
    }
    Ok(())
}

#[test]
fn bench_step_reports_one_line_and_refuses_what_cannot_be() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let small =
        ["bench", "step", "-o", "json", "--batch", "1", "--resolution", "8", "--text", "2", "--rank", "2"];
    let small = [small.as_slice(), &["--warmup", "0", "--steps", "2", "--peak-tflops", "1"]].concat();
    for more in [
        ["--references", "2"].as_slice(),
        &["--synthetic", "--storage", "float8", "--blocks", "host", "--recompute", "all"],
        &["--synthetic", "--precision", "bf16", "--recompute", "auto", "--memory", "1"],
    ] {
        let output = workbench(folder.path(), &[small.as_slice(), more].concat())?;
        let outcome = json(&output)?;
        ensure!(outcome["seconds"].as_array().is_some_and(|seconds| seconds.len() == 2), "{outcome:#}");
        ensure!(outcome["memory_bytes"].as_u64() > Some(1 << 20), "{outcome:#}");
        ensure!(outcome["share_of_floor"].as_f64() > Some(0.0), "{outcome:#}");
    }
    for (more, named) in [
        (["--resolution", "9"].as_slice(), "--resolution"),
        (&["--preset", "flux-dev"], "--synthetic"),
        (&["--preset", "flux"], "nano"),
        (&["--device", "tpu"], "cuda:INDEX"),
    ] {
        let output = workbench(folder.path(), &[["bench", "step"].as_slice(), more].concat())?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success() && text.contains(named), "{text}");
    }
    Ok(())
}
