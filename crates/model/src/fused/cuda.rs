//! The passes on a GPU: compiled by NVRTC when a device first asks for them, and launched on the stream that libtorch computes
//! on, the legacy default one.

#![allow(unsafe_code, reason = "launches kernels")]

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crescendo_device::dynamic::{DynamicLibrary, Visibility, folder_of_loaded};
use cudarc::driver::sys::CUdevice_attribute::{
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaStream, DeviceRepr, DriverError, LaunchConfig, PushKernelArg as _,
};
use cudarc::nvrtc::{CompileError, CompileOptions, Ptx, compile_ptx_with_opts};

use super::passes::{
    AdamW, GateBackward, GatedResidual, Gelu, GeluBackward, MoveHeads, NormModulate, NormModulateBackward,
    SplitHeads, SplitHeadsBackward,
};
use crate::error::{ModelError, Result};

/// Threads of a block: eight warps.
const THREADS: u32 = 256;
/// Folder with libnvrtc, where it is neither on the loader's path nor beside libtorch.
const FOLDER_VARIABLE: &str = "CRESCENDO_NVRTC";

/// The sources as one, since NVRTC has no folder to look in.
fn source() -> String {
    let parts = [
        include_str!("../../kernels/portable.h"),
        include_str!("../../kernels/fused.h"),
        include_str!("../../kernels/passes.h"),
        include_str!("../../kernels/cuda.cu"),
    ];
    let lines = parts.iter().flat_map(|part| part.lines());
    let kept = lines.filter(|line| !line.starts_with("#include \"") && !line.starts_with("#pragma once"));
    kept.collect::<Vec<_>>().join("\n")
}

/// A pass that the GPU has.
///
/// # Safety
/// The struct is byte for byte the one that the kernel `NAME` of `cuda.cu` takes.
pub unsafe trait Kernel: DeviceRepr {
    const NAME: &'static str;
}

macro_rules! kernels {
    ($($pass:ident: $name:literal;)*) => {
        /// Names of all.
        const NAMES: &[&str] = &[$($name),*];
        $(
            // SAFETY: plain numbers and pointers, laid out as C has them.
            unsafe impl DeviceRepr for $pass {}
            // SAFETY: as `passes.h` declares it, which the C++ build is tested with.
            unsafe impl Kernel for $pass {
                const NAME: &'static str = $name;
            }
        )*
    };
}

kernels! {
    NormModulate: "crescendo_norm_modulate";
    NormModulateBackward: "crescendo_norm_modulate_backward";
    GatedResidual: "crescendo_gated_residual";
    GateBackward: "crescendo_gate_backward";
    SplitHeads: "crescendo_split_heads";
    SplitHeadsBackward: "crescendo_split_heads_backward";
    MoveHeads: "crescendo_move_heads";
    Gelu: "crescendo_gelu";
    GeluBackward: "crescendo_gelu_backward";
    AdamW: "crescendo_adamw";
}

/// The kernels on one device.
#[derive(Debug)]
pub struct CudaKernels {
    functions: HashMap<&'static str, CudaFunction>,
    stream: Arc<CudaStream>,
}

fn capability(context: &CudaContext) -> std::result::Result<(i32, i32), DriverError> {
    let major = context.attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    Ok((major, context.attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?))
}

impl CudaKernels {
    /// Those of GPU `index`, compiled once a process; an error that says why there are none.
    pub fn of(index: usize) -> std::result::Result<&'static Self, String> {
        type Known = HashMap<usize, std::result::Result<&'static CudaKernels, String>>;
        static KNOWN: OnceLock<Mutex<Known>> = OnceLock::new();
        let mut known = KNOWN.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
        known
            .entry(index)
            .or_insert_with(|| Self::make(index).map(|kernels| &*Box::leak(Box::new(kernels))))
            .clone()
    }

    fn make(index: usize) -> std::result::Result<Self, String> {
        load_nvrtc()?;
        // cudarc panics on a driver that is too old to have one of its functions.
        catch_unwind(AssertUnwindSafe(|| {
            let of_driver = |error: DriverError| format!("driver: {error}");
            let context = CudaContext::new(index).map_err(of_driver)?;
            let (major, minor) = capability(&context).map_err(of_driver)?;
            let module = context.load_module(compile(&format!("sm_{major}{minor}"))?).map_err(of_driver)?;
            let functions = NAMES
                .iter()
                .map(|name| Ok((*name, module.load_function(name).map_err(of_driver)?)))
                .collect::<std::result::Result<_, String>>()?;
            Ok(Self { functions, stream: context.default_stream() })
        }))
        .map_err(|_| "the NVIDIA driver is older than CUDA 13".to_owned())?
    }

    /// Queues `pieces` of a pass behind what libtorch has queued.
    ///
    /// # Safety
    /// The pointers lead to as much memory of this GPU as the pieces need, of the dtypes that the struct says, and what frees it
    /// is queued on the same stream.
    pub unsafe fn run<K: Kernel>(&self, pass: &K, pieces: i64) -> Result<()> {
        let failed = |reason: String| ModelError::input("kernel", format!("{}: {reason}", K::NAME));
        let blocks = u32::try_from(pieces).map_err(|_| failed(format!("{pieces} pieces are too many")))?;
        if blocks == 0 {
            return Ok(());
        }
        let function = self.functions.get(K::NAME).ok_or_else(|| failed("is not compiled".into()))?;
        let shape =
            LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 };
        let mut launch = self.stream.launch_builder(function);
        // SAFETY: the struct is what the kernel takes, and the rest is the caller's word.
        unsafe { launch.arg(pass).launch(shape) }.map_err(|error| failed(error.to_string()))?;
        Ok(())
    }
}

/// The kernels for one architecture, such as `sm_90`.
fn compile(architecture: &str) -> std::result::Result<Ptx, String> {
    let options = CompileOptions {
        options: vec![format!("--gpu-architecture={architecture}"), "--std=c++17".to_owned()],
        ..CompileOptions::default()
    };
    compile_ptx_with_opts(source(), options).map_err(|error| match error {
        CompileError::CompileError { log, .. } => format!("NVRTC: {}", log.to_string_lossy().trim()),
        other => format!("NVRTC: {other:?}"),
    })
}

/// Loads libnvrtc, so that cudarc finds it by its name.
fn load_nvrtc() -> std::result::Result<(), String> {
    static LOADED: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    let load = || {
        let given = std::env::var_os(FOLDER_VARIABLE).map(PathBuf::from);
        // As the wheels lie: torch/lib beside nvidia/cu13/lib.
        let beside = folder_of_loaded("libtorch_cpu.so").map(|lib| lib.join("../../nvidia/cu13/lib"));
        for folder in given.into_iter().chain(beside) {
            // It looks for this one by name alone, when it first compiles.
            let builtins =
                std::fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path());
            let is_builtins = |path: &PathBuf| {
                path.file_name().is_some_and(|name| name.as_bytes().starts_with(b"libnvrtc-builtins.so"))
            };
            for path in builtins.filter(is_builtins) {
                let _ = open(&path);
            }
            if open(&folder.join("libnvrtc.so.13")).is_ok() {
                return Ok(());
            }
        }
        open(Path::new("libnvrtc.so.13"))
    };
    LOADED.get_or_init(load).clone()
}

fn open(path: &Path) -> std::result::Result<(), String> {
    let name = CString::new(OsStr::as_bytes(path.as_os_str())).map_err(|error| error.to_string())?;
    DynamicLibrary::open(&name, Visibility::Local).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nvrtc_compiles_every_kernel_for_every_generation() {
        load_nvrtc().expect("`make setup` installs NVRTC, and CRESCENDO_NVRTC names its folder");
        for architecture in ["sm_80", "sm_90", "sm_100"] {
            let ptx = compile(architecture).expect("compiles").to_src();
            for name in NAMES {
                assert!(ptx.contains(&format!(".entry {name}(")), "{architecture}: {name}");
            }
        }
    }
}
