//! What GPUs could do at most, by the names that the driver gives them.

/// Dense bfloat16 products with float32 sums, operations a second, by the start of the name. Longer names first. From
/// NVIDIA's data sheets of the H100, H200 and A100; the figures there are for sparse matrices where they say so, and
/// halved here.
const PEAKS: &[(&str, f64)] = &[
    ("NVIDIA H200 NVL", 835.5e12),
    ("NVIDIA H200", 989.4e12),
    ("NVIDIA GH200", 989.4e12),
    ("NVIDIA H100 NVL", 835.5e12),
    ("NVIDIA H100 PCIe", 756.4e12),
    ("NVIDIA H100 80GB HBM3", 989.4e12),
    ("NVIDIA A100", 311.9e12),
];

/// None for a GPU that is not known, or for a part of one.
pub fn known_peak_flops_per_sec(name: &str) -> Option<f64> {
    if name.contains("MIG") {
        return None;
    }
    PEAKS.iter().find(|(start, _)| name.starts_with(start)).map(|(_, peak)| *peak)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_driver_are_told_apart() {
        for (name, tera) in [
            ("NVIDIA H100 80GB HBM3", Some(989.4)),
            ("NVIDIA H100 PCIe", Some(756.4)),
            ("NVIDIA H100 NVL", Some(835.5)),
            ("NVIDIA H200", Some(989.4)),
            ("NVIDIA A100-SXM4-80GB", Some(311.9)),
            ("NVIDIA A100 80GB PCIe", Some(311.9)),
            ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
            ("NVIDIA GeForce RTX 4090", None),
            ("", None),
        ] {
            assert_eq!(known_peak_flops_per_sec(name).map(|peak| peak / 1e12), tera, "{name}");
        }
    }
}
