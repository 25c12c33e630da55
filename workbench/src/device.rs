//! Naming a device on the command line and opening it: shared by the commands that compute.

use anyhow::{Result, ensure};
use crescendo_collective::load_cuda;
use crescendo_model::tch::{Cuda, Device, Kind, Tensor};

/// Reads `cpu`, `cuda` or `cuda:INDEX`.
pub fn parse_device(text: &str) -> Result<Device, String> {
    match text.split_once(':') {
        None if text == "cpu" => Ok(Device::Cpu),
        None if text == "cuda" => Ok(Device::Cuda(0)),
        Some(("cuda", index)) => {
            index.parse().map(Device::Cuda).map_err(|error| format!("{text:?}: {error}"))
        }
        _ => Err(format!("{text:?} is not cpu, cuda or cuda:INDEX")),
    }
}

/// Loads what the device needs and returns its name; an error that says what is missing if it is not there.
pub fn open_device(device: Device) -> Result<String> {
    let Device::Cuda(index) = device else { return Ok("CPU".to_owned()) };
    ensure!(load_cuda()?, "this machine has no NVIDIA driver");
    let count = Cuda::device_count();
    ensure!((index as i64) < count, "there is no cuda:{index}: this machine has {count} GPUs");
    // Makes the device's context, which its memory is asked for through.
    drop(Tensor::f_zeros([1], (Kind::Float, device))?);
    Ok(crescendo_collective::device_name(index)?)
}

/// Whether this machine has a GPU that computes. Loads CUDA first: asked before that, libtorch says no and keeps to it.
pub fn has_cuda() -> bool {
    matches!(load_cuda(), Ok(true)) && Cuda::is_available()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_by_name() {
        assert_eq!(parse_device("cpu"), Ok(Device::Cpu));
        assert_eq!(parse_device("cuda"), Ok(Device::Cuda(0)));
        assert_eq!(parse_device("cuda:3"), Ok(Device::Cuda(3)));
        for wrong in ["gpu", "cuda:", "cuda:x", "cpu:0", ""] {
            assert!(parse_device(wrong).is_err(), "{wrong}");
        }
    }
}
