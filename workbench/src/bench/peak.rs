//! What a device can do at most, and what memory it has given.

use std::time::Instant;

use anyhow::{Context as _, Result};
use crescendo_model::tch::{Device, Kind, Tensor};

/// Dense bfloat16 arithmetic by a part of the device's name, 10¹² operations a second, from the makers' data sheets. The
/// first that fits counts.
const BF16_TFLOPS: [(&str, f64); 10] = [
    ("B200", 2250.0),
    ("H200", 989.0),
    ("H100 PCIe", 756.0),
    ("H100", 989.0),
    ("H800", 989.0),
    ("A100", 312.0),
    ("L40S", 362.0),
    ("RTX 6000 Ada", 364.0),
    ("4090", 165.0),
    ("3090", 71.0),
];

/// The table's entry for a device of this name.
pub fn from_table(name: &str, kind: Kind) -> Option<f64> {
    let known = BF16_TFLOPS.iter().find(|(part, _)| name.contains(part)).map(|(_, tflops)| *tflops);
    known.filter(|_| kind == Kind::BFloat16)
}

/// 10¹² operations a second of one large matrix product, the best of a few.
pub fn measured(device: Device, kind: Kind) -> Result<f64> {
    let side: i64 = if device.is_cuda() { 8192 } else { 1024 };
    let a = Tensor::f_randn([side, side], (Kind::Float, device))?.f_to_kind(kind)?;
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let started = Instant::now();
        let product = a.f_matmul(&a)?;
        crescendo_device::choice::wait(device);
        best = best.min(started.elapsed().as_secs_f64());
        drop(product);
    }
    Ok(2.0 * (side as f64).powi(3) / best / 1e12)
}

/// Most memory that was in use, bytes: on a GPU what is not free once it is all over, since libtorch keeps what it has had;
/// otherwise what this process has had resident at most.
pub fn memory_bytes(device: Device) -> Result<u64> {
    if device.is_cuda() {
        let memory = crescendo_device::cuda::memory()?;
        return Ok(memory.total_bytes.saturating_sub(memory.free_bytes));
    }
    let status = std::fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    resident_peak_bytes(&status).context("/proc/self/status has no VmHWM")
}

fn resident_peak_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_found_by_a_part_of_their_name() {
        assert_eq!(from_table("NVIDIA H100 PCIe", Kind::BFloat16), Some(756.0));
        assert_eq!(from_table("NVIDIA H100 80GB HBM3", Kind::BFloat16), Some(989.0));
        assert_eq!(from_table("NVIDIA H100 80GB HBM3", Kind::Float), None);
        assert_eq!(from_table("Abacus", Kind::BFloat16), None);
    }

    #[test]
    fn the_resident_peak_is_read_in_kibibytes() {
        assert_eq!(resident_peak_bytes("VmPeak:\t 10 kB\nVmHWM:\t    2048 kB\n"), Some(2 << 20));
        assert_eq!(resident_peak_bytes("VmPeak:\t 10 kB\n"), None);
        assert!(measured(Device::Cpu, Kind::Float).unwrap() > 0.0);
    }
}
