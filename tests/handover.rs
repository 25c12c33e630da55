//! The end of a job, as a person has it: what `submit --watch` prints last is pasted into a shell.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use crescendo_tests::{Up, base_spec, binary, lora_spec, write_subjects};

const LIMIT: Duration = Duration::from_secs(180);

#[tokio::test]
async fn what_is_printed_at_the_end_works_as_pasted() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    write_subjects(&folder.join("subjects"), 40)?;
    let up = Up::start(folder, &["--trainers", "1", "--slots", "2"], &[]).await?;
    let base = up.submit(&base_spec(2))?;
    up.await_success(&base, LIMIT).await?;
    up.run(&["cp", &base, "base.safetensors"])?;

    // Two references, so that both have to be there.
    std::fs::write(folder.join("lora.yaml"), lora_spec("base.safetensors", 2, 4, 100))?;
    let done = up.command(&["submit", "lora.yaml", "--watch"])?.stdin(Stdio::null()).output()?;
    let (out, said) = (String::from_utf8(done.stdout)?, String::from_utf8(done.stderr)?);
    ensure!(done.status.success(), "{}:\n{out}\n{said}", done.status);
    let job_id = out.lines().next().context("no job id")?;
    let lora = said.lines().skip_while(|line| !line.starts_with("LoRA of stage-2, step 4:")).nth(1);
    let lora = folder.join(lora.context("no path of the LoRA")?.trim());
    ensure!(lora.is_file(), "{} is not there:\n{said}", lora.display());

    // Everything that is indented from the first command on.
    let from = said.lines().skip_while(|line| !(line.starts_with("  ") && line.contains(" cp ")));
    let commands: Vec<&str> = from.filter(|line| line.starts_with("  ")).collect();
    ensure!(!commands.is_empty(), "no command:\n{said}");
    let programs = binary("crescendo")?.parent().context("a folder")?.display().to_string();
    let pasted = Command::new("sh")
        .args(["-e", "-c", &commands.join("\n")])
        .current_dir(folder)
        .env("PATH", format!("{programs}:{}", std::env::var("PATH").unwrap_or_default()))
        .env("XDG_STATE_HOME", folder)
        .env("XDG_CONFIG_HOME", folder)
        .stdin(Stdio::null())
        .output()?;
    let complaint = String::from_utf8_lossy(&pasted.stderr);
    ensure!(pasted.status.success(), "{}\n{}\n{complaint}", commands.join("\n"), pasted.status);
    ensure!(
        std::fs::read(folder.join(format!("{job_id}.safetensors")))? == std::fs::read(&lora)?,
        "the copy differs from the LoRA"
    );
    let picture = image::open(folder.join(format!("{job_id}.png"))).context("open the picture")?;
    ensure!(picture.width() > 0, "the picture is empty");

    // The other formats are made by the workbench.
    up.run(&["cp", job_id, "comfy.safetensors", "--format", "comfyui"])?;
    let converted = std::fs::read(folder.join("comfy.safetensors"))?;
    let names = String::from_utf8_lossy(&converted);
    ensure!(names.contains("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"), "not converted");
    Ok(())
}
