//! What the report is made on, and what it had best compute in there.

use std::num::NonZero;
use std::time::{Duration, Instant};

use anyhow::Result;
use crescendo_model::tch::{Device, Kind, Tensor};
use serde::Serialize;

use crescendo_device::open;

/// The machine and how it computes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Machine {
    pub processor: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Name of the GPU that draws, if one does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu: Option<String>,
    /// Of the arithmetic that draws: `f32` or `bf16`.
    pub precision: &'static str,
}

impl Machine {
    /// This machine, drawing on `device` in `kind`.
    pub fn here(device: Device, kind: Kind) -> Self {
        let described = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self {
            processor: processor(&described).unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores: std::thread::available_parallelism().map_or(1, NonZero::get),
            gpu: match device {
                Device::Cuda(_) => open(device).ok(),
                _ => None,
            },
            precision: if kind == Kind::BFloat16 { "bf16" } else { "f32" },
        }
    }

    /// One line.
    pub fn words(&self) -> String {
        let cores = if self.cores == 1 { "1 core".to_owned() } else { format!("{} cores", self.cores) };
        let on = match &self.gpu {
            Some(gpu) => format!("{gpu}, {}, {cores}", self.processor),
            None => format!("{}, {cores}", self.processor),
        };
        format!("{on}, {}", self.precision)
    }
}

/// What to draw in on `device` for a job that computed in `asked`: float32 where a processor is no faster in bfloat16, which
/// on many takes eight times as long.
pub fn drawing_kind(asked: Kind, device: Device) -> Result<Kind> {
    if asked != Kind::BFloat16 || device != Device::Cpu {
        return Ok(asked);
    }
    Ok(faster(time_of_product(Kind::Float)?, time_of_product(Kind::BFloat16)?))
}

fn faster(f32_time: Duration, bf16_time: Duration) -> Kind {
    if bf16_time < f32_time { Kind::BFloat16 } else { Kind::Float }
}

/// Median time of a product of the nano network's shape, after one that does not count.
fn time_of_product(kind: Kind) -> Result<Duration> {
    const COUNTED: usize = 3;
    let a = Tensor::f_ones([512, 256], (Kind::Float, Device::Cpu))?.f_to_kind(kind)?;
    let b = Tensor::f_ones([256, 1024], (Kind::Float, Device::Cpu))?.f_to_kind(kind)?;
    let mut times = Vec::with_capacity(COUNTED + 1);
    for _ in 0..=COUNTED {
        let began = Instant::now();
        drop(a.f_matmul(&b)?);
        times.push(began.elapsed());
    }
    let counted = &mut times[1..];
    counted.sort();
    Ok(counted[COUNTED / 2])
}

/// Name of the first processor in the text of `/proc/cpuinfo`; kernels for some architectures give none.
fn processor(cpuinfo: &str) -> Option<String> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    let name = line.split_once(':')?.1.split_whitespace().collect::<Vec<_>>().join(" ");
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_named_where_the_kernel_does() {
        let text = "processor\t: 0\nmodel name\t: AMD EPYC  7B13\nmodel name\t: other\n";
        assert_eq!(processor(text).as_deref(), Some("AMD EPYC 7B13"));
        assert_eq!(processor("processor\t: 0\nBogoMIPS\t: 50.00\n"), None);
        assert_eq!(processor("model name\t:\n"), None);
    }

    #[test]
    fn only_a_faster_bf16_is_drawn_in() {
        let (short, long) = (Duration::from_millis(2), Duration::from_millis(3));
        assert_eq!((faster(long, short), faster(short, long)), (Kind::BFloat16, Kind::Float));
        assert_eq!(faster(short, short), Kind::Float);
        assert_eq!(drawing_kind(Kind::Float, Device::Cpu).unwrap(), Kind::Float);
        assert_eq!(drawing_kind(Kind::BFloat16, Device::Cuda(0)).unwrap(), Kind::BFloat16);
        assert!(time_of_product(Kind::Float).unwrap() > Duration::ZERO);
    }

    #[test]
    fn a_machine_is_said_in_one_line() {
        let mut machine = Machine { processor: "EPYC".into(), cores: 2, gpu: None, precision: "f32" };
        assert_eq!(machine.words(), "EPYC, 2 cores, f32");
        machine.gpu = Some("H100".into());
        machine.cores = 1;
        assert_eq!(machine.words(), "H100, EPYC, 1 core, f32");
    }
}
