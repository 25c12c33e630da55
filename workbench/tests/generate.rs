//! `generate` as a user calls it, with the shipped base and two steps a picture.

use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context as _, Result, ensure};
use crescendo_model::lora::BlockSelection;
use crescendo_model::tch::{Device, Kind};
use crescendo_model::{FluxConfig, LoraAdapter};
use image::{Rgb, RgbImage};

fn generate(folder: &Path, args: &[&str]) -> Result<Output> {
    let weights = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/nano/base.safetensors");
    let own_weights = !args.contains(&"--weights");
    Command::new(env!("CARGO_BIN_EXE_crescendo-workbench"))
        .current_dir(folder)
        .env("OMP_NUM_THREADS", "1")
        .args([
            "generate",
            "--preset",
            "nano",
            "--device",
            "cpu",
            "--steps",
            "2",
            "--prompt",
            "a cup on plain red",
        ])
        .args(own_weights.then_some("--weights"))
        .args(own_weights.then_some(weights))
        .args(args)
        .output()
        .context("start the workbench")
}

fn drawn(folder: &Path, args: &[&str]) -> Result<()> {
    let output = generate(folder, args)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn refusal(folder: &Path, args: &[&str]) -> Result<String> {
    let output = generate(folder, args)?;
    ensure!(!output.status.success(), "it was accepted");
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn the_same_settings_give_the_same_file_and_the_file_says_what_they_were() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    RgbImage::from_fn(40, 30, |x, y| Rgb([(x * 6) as u8, (y * 8) as u8, 90])).save(folder.join("cup.png"))?;
    for name in ["a.png", "b.png"] {
        drawn(
            folder,
            &["--reference", "cup.png", "--reference", "cup.png", "--size", "40x24", "--out", name],
        )?;
    }
    let [a, b] = ["a.png", "b.png"].map(|name| std::fs::read(folder.join(name)).expect("it is written"));
    ensure!(a == b, "the same settings gave two pictures");
    drawn(folder, &["--reference", "cup.png", "--size", "40x24", "--out", "one.png"])?;
    let pixels = |name: &str| image::open(folder.join(name)).map(|picture| picture.to_rgb8());
    ensure!(pixels("one.png")? != pixels("a.png")?, "the second reference changes nothing");
    ensure!(pixels("a.png")?.dimensions() == (40, 24));

    let reader = png::Decoder::new(std::io::Cursor::new(&a)).read_info()?;
    let chunk = reader.info().utf8_text.first().context("the picture has no text")?;
    let settings: serde_json::Value = serde_json::from_str(&chunk.get_text()?)?;
    ensure!(chunk.keyword == "crescendo" && settings["prompt"] == "a cup on plain red", "{settings}");
    ensure!(settings["seed"] == 3407 && settings["width"] == 40 && settings["steps"] == 2, "{settings}");
    ensure!(settings["references"].as_array().is_some_and(|list| list.len() == 2), "{settings}");
    Ok(())
}

#[test]
fn several_seeds_make_a_grid_and_a_picture_each() -> Result<()> {
    let folder = tempfile::tempdir()?;
    drawn(folder.path(), &["--seed", "1,2", "--out", "grid.png"])?;
    let open = |name: &str| image::open(folder.path().join(name)).map(|picture| picture.to_rgb8());
    let (one, two) = (open("grid-base-1.png")?, open("grid-base-2.png")?);
    ensure!(one.dimensions() == (32, 32) && one != two);
    ensure!(open("grid.png")?.height() > 2 * 256);
    Ok(())
}

#[test]
fn what_cannot_be_drawn_is_named() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    std::fs::write(folder.join("torn.png"), b"\x89PNG")?;
    let many: Vec<&str> = std::iter::repeat_n(["--reference", "x.png"], 9).flatten().collect();
    for (args, says) in [
        (vec!["--size", "30x32"], "width of 30"),
        (vec!["--size", "big"], "WIDTHxHEIGHT"),
        (vec!["--steps", "0"], "steps"),
        (many, "9 references"),
        (vec!["--reference", "absent.png"], "absent.png"),
        (vec!["--reference", "torn.png"], "torn.png"),
        (vec!["--lora", "absent.safetensors"], "absent.safetensors"),
        (vec!["--out", "absent/a.png"], "absent/a.png"),
    ] {
        let error = refusal(folder, &args)?;
        ensure!(error.contains(says) && !error.contains("panicked"), "{args:?}: {error}");
        // What clap refuses ends with where to read on.
        let lines = error.trim_end().lines().count();
        ensure!(
            error.starts_with("error: ") && (lines == 1 || error.contains("--help")),
            "{args:?}: {error}"
        );
    }
    Ok(())
}

#[test]
fn what_is_wrong_is_said_before_anything_is_loaded() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    // Text that loading would refuse: who gets as far says so.
    std::fs::write(folder.join("weights.safetensors"), "no weights")?;
    RgbImage::new(20, 20).save(folder.join("photo.png"))?;
    for (args, says) in [
        (["--lora", "absent.safetensors"], "--lora absent.safetensors: there is no such file"),
        (["--out", "absent/a.png"], "--out absent/a.png: there is no folder absent"),
        (["--out", "photo.png"], "--out photo.png is there"),
        (["--reference", "absent.png"], "absent.png"),
    ] {
        let mut all = vec!["--weights", "weights.safetensors"];
        all.extend(args);
        let error = refusal(folder, &all)?;
        ensure!(error.contains(says) && !error.contains("begins with"), "{args:?}: {error}");
    }
    let error = refusal(folder, &["--weights", "weights.safetensors"])?;
    ensure!(error.contains("weights.safetensors is not usable: it is text that begins with"), "{error}");
    // An adapter of another width: told by its header, before the encoders and the base are loaded.
    let config = FluxConfig { hidden_size: 96, num_heads: 3, ..FluxConfig::nano() };
    let mut lora = LoraAdapter::init(&config, 2, &BlockSelection::all(&config), 1, Kind::Float, Device::Cpu)?;
    lora.save(&folder.join("narrow.safetensors"))?;
    let error = refusal(folder, &["--lora", "narrow.safetensors"])?;
    ensure!(error.starts_with("error: --lora: ") && error.contains("expected [2, 192]"), "{error}");
    Ok(())
}

/// A LoRA that was copied out of its job is alone: how it was trained is not known, and not guessed.
#[test]
fn thin_references_are_drawn_with_and_nothing_is_said_of_a_lora_that_lies_alone() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    RgbImage::from_fn(527, 177, |x, _| Rgb([(x / 3) as u8, 90, 20])).save(folder.join("keys.png"))?;
    let config = FluxConfig::nano();
    let mut lora = LoraAdapter::init(&config, 2, &BlockSelection::all(&config), 1, Kind::Float, Device::Cpu)?;
    lora.save(&folder.join("lora.safetensors"))?;
    let keys = ["--reference", "keys.png"];
    let output = generate(folder, &[&keys[..], &keys, &keys, &["--lora", "lora.safetensors"]].concat())?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && said.is_empty(), "{said}");
    ensure!(folder.join("generated.png").is_file());
    Ok(())
}
