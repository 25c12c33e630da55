//! `doctor`: whether libtorch, CUDA and NCCL are there and compute. `crescendo doctor` calls it for its own report.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use crescendo_collective::{NcclVersion, nccl_version};
use crescendo_core::precision::CLEARLY_FASTER;
use crescendo_device::{CudaVersion, choice, cuda as driver, load_cuda};
use crescendo_model::speed;
use crescendo_model::tch::{Device, Kind, TchError, Tensor};
use serde::Serialize;

use crate::parity::Output;

/// The libtorch that everything here is made for.
const TORCH_VERSION: &str = "2.11.0";
/// The CUDA that it is made with.
const CUDA: CudaVersion = CudaVersion { major: 13, minor: 0 };
/// The oldest driver that runs programs of it (CUDA 13 release notes, table of drivers).
const NEW_DRIVER: &str =
    "install a driver for CUDA 13 (580 or later); in a container: start it with the NVIDIA runtime";
/// Releases of NCCL that crash when a process makes a communicator after it has ended one.
const CRASHING: std::ops::RangeInclusive<NcclVersion> =
    NcclVersion::new(2, 28, 3)..=NcclVersion::new(2, 28, 8);
/// Side of the matrices that are multiplied to see that something computes.
const SIDE: i64 = 256;

/// Check libtorch, CUDA and NCCL on this machine.
///
/// Exits with 1 if something has failed and the result is a table; as JSON the verdicts are in the result.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// GPUs are wanted: without one that computes, it is a failure
    #[arg(long)]
    gpu: bool,
    /// How to print the result
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// One thing that was looked at, as `crescendo doctor` reads it.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    name: &'static str,
    /// `ok`, `warning`, `failed` or `skipped`.
    status: &'static str,
    found: String,
    /// What to do; empty if nothing.
    remedy: &'static str,
}

impl Check {
    fn failed(&self) -> bool {
        self.status == "failed"
    }
}

fn check(name: &'static str, status: &'static str, found: impl Into<String>, remedy: &'static str) -> Check {
    Check { name, status, found: found.into(), remedy }
}

/// Runs the subcommand.
pub fn run(args: &DoctorArgs) -> Result<ExitCode> {
    let mut checks = vec![libtorch(), bf16()];
    checks.extend(cuda(args.gpu));
    match args.output {
        Output::Json => {
            println!("{}", serde_json::to_string(&checks)?);
            Ok(ExitCode::SUCCESS)
        }
        Output::Table => {
            for Check { name, status, found, remedy } in &checks {
                println!("{status:<7}  {name:<8}  {found}");
                if !remedy.is_empty() {
                    println!("{:19}→ {remedy}", "");
                }
            }
            Ok(if checks.iter().any(Check::failed) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
        }
    }
}

fn libtorch() -> Check {
    let name = "libtorch";
    let remedy = "install torch==2.11.0 and set LD_LIBRARY_PATH to its lib folder: other versions have other interfaces";
    let off = match off_by(Device::Cpu) {
        Ok(off) => off,
        Err(error) => {
            return check(name, "failed", format!("it loads, and does not compute: {error}"), remedy);
        }
    };
    if off > 1e-3 {
        return check(name, "failed", format!("it loads, and computes wrongly (by {off:e})"), remedy);
    }
    let Some(library) = loaded("libtorch_cpu.so") else {
        return check(name, "ok", "linked into this program; computes", "");
    };
    let place = library.display();
    match version_beside(&library) {
        Some(version) if version.split('+').next() == Some(TORCH_VERSION) => {
            check(name, "ok", format!("{version} in {place}; computes"), "")
        }
        Some(version) => {
            check(name, "failed", format!("{version} in {place}; this is made for {TORCH_VERSION}"), remedy)
        }
        None => check(name, "ok", format!("{place}; computes (no file beside it tells its version)"), ""),
    }
}

/// File of a library that this process has loaded.
fn loaded(name: &str) -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let line = maps.lines().find(|line| line.ends_with(name))?;
    Some(PathBuf::from(line.get(line.find('/')?..)?))
}

/// What the wheel says of itself, e.g. `2.11.0+cu130`.
fn version_beside(library: &Path) -> Option<String> {
    let root = library.parent()?.parent()?;
    let python = std::fs::read_to_string(root.join("version.py")).ok();
    let quoted = |line: &str| line.split('\'').nth(1).map(str::to_owned);
    let from_python =
        python.and_then(|text| text.lines().find(|line| line.starts_with("__version__")).and_then(quoted));
    from_python.or_else(|| {
        let text = std::fs::read_to_string(root.join("build-version")).ok()?;
        Some(text.trim().to_owned())
    })
}

/// Whether bfloat16 computes on the CPU, and how fast it is there.
fn bf16() -> Check {
    let name = "bf16";
    if let Err(error) = bf16_attention() {
        let text = error.to_string();
        let found = format!("attention fails: {}", text.lines().next().unwrap_or_default());
        let remedy = "set ONEDNN_MAX_CPU_ISA=AVX2 beside ATEN_CPU_CAPABILITY=avx2, or neither: alone it takes kernels that do not fit";
        return check(name, "failed", found, remedy);
    }
    match speed::of_cpu(1).map(|measured| measured.bf16_factor()) {
        Ok(Some(factor)) if factor * CLEARLY_FASTER < 1.0 => {
            let found = format!("runs at {factor:.2} of f32's speed on this CPU");
            check(name, "warning", found, "let specs say precision: auto, which takes f32 here")
        }
        Ok(factor) => {
            check(name, "ok", format!("{:.1} times as fast as f32 on this CPU", factor.unwrap_or(1.0)), "")
        }
        Err(error) => check(name, "failed", format!("does not compute: {error}"), "report this"),
    }
}

/// As the networks call it, long enough for every kernel that libtorch chooses from.
fn bf16_attention() -> std::result::Result<Tensor, TchError> {
    let tokens = Tensor::f_ones([1, 2, 768, 64], (Kind::BFloat16, Device::Cpu))?;
    Tensor::f_scaled_dot_product_attention(
        &tokens,
        &tokens,
        &tokens,
        None::<&Tensor>,
        0.0,
        false,
        None,
        false,
    )
}

/// How far a product of matrices of ones is from what it must be.
fn off_by(device: Device) -> std::result::Result<f64, TchError> {
    let ones = Tensor::f_ones([SIDE, SIDE], (Kind::Float, device))?;
    let product = ones.f_matmul(&ones)?;
    let off = product.f_sub_scalar(SIDE as f64)?.f_abs()?.f_max()?;
    f64::try_from(off)
}

fn cuda(wanted: bool) -> Vec<Check> {
    let name = "cuda";
    match load_cuda() {
        Err(error) => vec![check(
            name,
            if wanted { "failed" } else { "warning" },
            error.to_string(),
            "install torch==2.11.0 with all it depends on, and set LD_LIBRARY_PATH to its lib folder",
        )],
        Ok(false) if wanted => {
            vec![check(name, "failed", "there is no NVIDIA driver (libcuda.so.1)", NEW_DRIVER)]
        }
        Ok(false) => vec![check(name, "ok", "there is no NVIDIA driver; ranks compute on the CPU", "")],
        Ok(true) => {
            let mut checks = vec![match driver::supported() {
                Ok(supported) => driver_check(supported, driver::driver_release().as_deref()),
                Err(error) => check("driver", "failed", error.to_string(), NEW_DRIVER),
            }];
            let gpus = choice::count();
            if gpus == 0 {
                checks.push(check(
                    name,
                    "failed",
                    "libtorch's CUDA half loads and sees no GPU",
                    "look at CUDA_VISIBLE_DEVICES, at what the container was given, and at nvidia-smi",
                ));
                return checks;
            }
            checks.extend((0..gpus as usize).map(gpu));
            checks.push(nccl());
            checks
        }
    }
}

/// Whether a driver that runs CUDA up to `supported` is new enough. `release` is that of its kernel module: an older one
/// does, if the libraries of a newer driver came with it (CUDA's forward compatibility).
fn driver_check(supported: CudaVersion, release: Option<&str>) -> Check {
    let found = format!("release {}, runs CUDA up to {supported}", release.unwrap_or("unknown"));
    if supported < CUDA {
        let found = format!("{found}; this libtorch is made with {CUDA}, and no GPU can be used");
        return check("driver", "failed", found, NEW_DRIVER);
    }
    check("driver", "ok", found, "")
}

fn gpu(index: usize) -> Check {
    let name = "cuda";
    let shown = driver::name(index).unwrap_or_else(|error| error.to_string());
    let remedy =
        "look at nvidia-smi and at dmesg (XID): the GPU may need a reset, or belong to another process";
    match off_by(Device::Cuda(index)) {
        Ok(off) if off <= 1e-3 => check(name, "ok", format!("GPU {index} computes: {shown}"), ""),
        Ok(off) => {
            check(name, "failed", format!("GPU {index} ({shown}) computes wrongly (by {off:e})"), remedy)
        }
        Err(error) => {
            let first = error.to_string();
            let line = first.lines().next().unwrap_or_default();
            check(name, "failed", format!("GPU {index} ({shown}) does not compute: {line}"), remedy)
        }
    }
}

fn nccl() -> Check {
    match nccl_version() {
        Ok(version) => nccl_check(version, loaded("libnccl.so.2").as_deref()),
        Err(error) => check(
            "nccl",
            "failed",
            error.to_string(),
            "install nvidia-nccl-cu13 (torch depends on it) and set LD_LIBRARY_PATH to its lib folder",
        ),
    }
}

/// Whether a version of NCCL, from a file if that is known, is one to train with.
fn nccl_check(version: NcclVersion, library: Option<&Path>) -> Check {
    let place = library.map(|library| format!(" in {}", library.display())).unwrap_or_default();
    let found = format!("version {version}{place}");
    if CRASHING.contains(&version) {
        let found = format!("{found}; 2.28.3 to 2.28.8 crash when one process makes a second group");
        return check(
            "nccl",
            "warning",
            found,
            "install nvidia-nccl-cu13 2.28.9 or later: ranks make one group a process, other programs may make more",
        );
    }
    check("nccl", "ok", found, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_libtorch_of_this_program_computes_and_is_the_right_one() {
        let found = libtorch();
        assert_eq!(found.status, "ok", "{found:?}");
        assert!(loaded("libtorch_cpu.so").is_some());
    }

    #[test]
    fn bf16_is_timed_and_its_attention_tried() {
        let found = bf16();
        assert!(["ok", "warning"].contains(&found.status) && found.found.contains("f32"), "{found:?}");
    }

    #[test]
    fn versions_are_read_as_wheels_write_them() {
        let root = tempfile::tempdir().unwrap();
        let library = root.path().join("lib/libtorch_cpu.so");
        assert_eq!(version_beside(&library), None);
        std::fs::write(root.path().join("build-version"), "2.11.0\n").unwrap();
        assert_eq!(version_beside(&library).as_deref(), Some("2.11.0"));
        std::fs::write(root.path().join("version.py"), "from x import y\n__version__ = '2.11.0+cu130'\n")
            .unwrap();
        assert_eq!(version_beside(&library).as_deref(), Some("2.11.0+cu130"));
    }

    #[test]
    fn releases_of_nccl_that_crash_are_warned_of() {
        let of = |patch| nccl_check(NcclVersion::new(2, 28, patch), None).status;
        assert_eq!([2, 3, 8, 9].map(of), ["ok", "warning", "warning", "ok"]);
        assert_eq!(nccl_check(NcclVersion::new(2, 29, 3), None).status, "ok");
        let named = nccl_check(NcclVersion::new(2, 28, 5), Some(Path::new("/lib/libnccl.so.2")));
        assert!(named.found.starts_with("version 2.28.5 in /lib/libnccl.so.2; "), "{named:?}");
        assert!(named.remedy.contains("2.28.9"), "{named:?}");
    }

    #[test]
    fn a_driver_older_than_cuda_13_asks_for_has_failed() {
        let of = |major, minor| driver_check(CudaVersion { major, minor }, Some("570.86.15"));
        let old = of(12, 8);
        assert!(old.failed() && old.remedy.contains("580"), "{old:?}");
        assert!(old.found.contains("570.86.15") && old.found.contains("12.8"), "{old:?}");
        assert!(!of(13, 0).failed() && !of(13, 1).failed(), "with the libraries of a newer one");
        assert!(driver_check(CudaVersion { major: 12, minor: 9 }, None).failed());
    }

    #[test]
    fn a_machine_that_should_have_gpus_and_has_none_has_failed() {
        if matches!(load_cuda(), Ok(false)) {
            assert!(cuda(true).iter().all(Check::failed));
            assert!(!cuda(false).iter().any(Check::failed));
        }
    }
}
