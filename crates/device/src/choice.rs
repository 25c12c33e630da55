//! Which device a process computes on: what was asked for, beside what is there.

use tch::{Cuda, Device, Kind, Tensor};

use crate::cuda::{self, DeviceError, load_cuda};

/// What `--device` takes where a process takes the machine's GPUs as they come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum DeviceChoice {
    /// The GPUs if there are any that work, or else the CPU
    #[default]
    Auto,
    Cpu,
    Cuda,
}

/// The GPUs that a process may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpus {
    /// 0: it computes on the CPU.
    pub count: u32,
    /// Why it does so although there is a driver; worth a warning.
    pub passed_over: Option<DeviceError>,
}

impl Gpus {
    /// The first of them, or the CPU.
    pub fn first(&self) -> Device {
        if self.count > 0 { Device::Cuda(0) } else { Device::Cpu }
    }
}

impl DeviceChoice {
    /// The GPUs that were chosen. `Cuda` where none works is an error that says why.
    pub fn gpus(self) -> Result<Gpus, DeviceError> {
        self.among(|| Ok(if load_cuda()? { count() } else { 0 }))
    }

    /// Given how to find out how many there are; nobody asks where it is to be the CPU.
    fn among(self, find: impl FnOnce() -> Result<u32, DeviceError>) -> Result<Gpus, DeviceError> {
        match self {
            DeviceChoice::Cpu => Ok(Gpus { count: 0, passed_over: None }),
            DeviceChoice::Auto => Ok(match find() {
                Ok(count) => Gpus { count, passed_over: None },
                Err(error) => Gpus { count: 0, passed_over: Some(error) },
            }),
            DeviceChoice::Cuda => match find()? {
                0 => Err(DeviceError::Missing("--device cuda: this machine has no usable GPU".into())),
                count => Ok(Gpus { count, passed_over: None }),
            },
        }
    }
}

/// What a node says that it computes on: `cpu` or `cuda`.
pub fn kind(device: Device) -> &'static str {
    match device {
        Device::Cuda(_) => "cuda",
        _ => "cpu",
    }
}

/// GPUs that libtorch sees; none before [`load_cuda`].
pub fn count() -> u32 {
    u32::try_from(Cuda::device_count()).unwrap_or(0)
}

/// Reads `cpu`, `cuda` or `cuda:INDEX`, what `--device` takes where it names one device.
pub fn parse(text: &str) -> Result<Device, String> {
    match text.split_once(':') {
        None if text == "cpu" => Ok(Device::Cpu),
        None if text == "cuda" => Ok(Device::Cuda(0)),
        Some(("cuda", index)) => {
            index.parse().map(Device::Cuda).map_err(|error| format!("{text:?}: {error}"))
        }
        _ => Err(format!("{text:?} is not cpu, cuda or cuda:INDEX")),
    }
}

/// Makes a device ready and returns its name; an error that says what is missing if it is not there.
pub fn open(device: Device) -> Result<String, DeviceError> {
    let Device::Cuda(index) = device else { return Ok("CPU".to_owned()) };
    if !load_cuda()? {
        return Err(DeviceError::NoDriver);
    }
    let count = count();
    if index >= count as usize {
        return Err(DeviceError::Missing(format!("there is no cuda:{index}: this machine has {count} GPUs")));
    }
    // Makes the device's context, which its memory is asked for through.
    if let Err(error) = Tensor::f_zeros([1], (Kind::Float, device)) {
        let reason = error.to_string();
        let reason = reason.lines().next().unwrap_or_default().to_owned();
        return Err(DeviceError::Compute { index, reason });
    }
    cuda::name(index)
}

/// Waits until the device has done all that it was given.
pub fn wait(device: Device) {
    if let Device::Cuda(index) = device {
        Cuda::synchronize(index as i64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_by_name() {
        assert_eq!(parse("cpu"), Ok(Device::Cpu));
        assert_eq!(parse("cuda"), Ok(Device::Cuda(0)));
        assert_eq!(parse("cuda:3"), Ok(Device::Cuda(3)));
        for wrong in ["gpu", "cuda:", "cuda:x", "cpu:0", ""] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_driver_without_libtorchs_half_is_passed_over_unless_it_was_asked_for() {
        let broken = || Err(DeviceError::Libtorch("libcublas.so.13: cannot open".into()));
        let auto = DeviceChoice::Auto.among(broken).expect("the CPU");
        assert_eq!((auto.first(), auto.passed_over), (Device::Cpu, broken().err()));
        assert_eq!(DeviceChoice::Cuda.among(broken), Err(broken().unwrap_err()));
        assert!(DeviceChoice::Cuda.among(|| Ok(0)).is_err());
        assert_eq!(DeviceChoice::Cuda.among(|| Ok(2)).map(|gpus| gpus.first()), Ok(Device::Cuda(0)));
        assert_eq!(DeviceChoice::Auto.among(|| Ok(0)).map(|gpus| gpus.first()), Ok(Device::Cpu));
        assert_eq!(DeviceChoice::Cpu.gpus().map(|gpus| gpus.count), Ok(0));
    }
}
