//! What decides the units of a stage beside its spec: the files that it names, and the machine.

use crate::paths::PathResolver;
use crate::paths::fingerprint;
use crescendo_core::spec::{DataSource, JobSpec, ModelPreset, NamedFile, named_files};
use crescendo_model::tch::Device;
use std::collections::BTreeSet;

/// A line for each file or folder that drawing a unit of stage `index` reads, and one for what draws. What cannot be read is
/// left out: drawing says so. Blocks.
pub fn of_stage(job: &JobSpec, index: u32, paths: &PathResolver, device: Device) -> Vec<String> {
    let mut named = BTreeSet::new();
    if let Some(stage) = job.stages.get(index as usize) {
        let of_stage = |file: &NamedFile<'_>| file.stage == Some(index as usize);
        named.extend(named_files(job).into_iter().filter(of_stage).map(|file| file.path.to_owned()));
        if matches!(stage.data.source, DataSource::Generate(_) | DataSource::Recompose(_)) {
            named.extend(job.model.weights.clone());
            // Nano's are part of the program.
            named.extend(job.model.encoders.clone().filter(|_| job.model.preset != ModelPreset::Nano));
        }
    }
    let files = named.into_iter().filter(|text| !text.is_empty()).filter_map(|text| {
        let path = paths.resolve(&text).ok()?;
        Some(format!("{text} {}", fingerprint::of_path(&path).ok()?))
    });
    files.chain(std::iter::once(machine(device))).collect()
}

/// The kind of machine: pictures differ in their last bits between kinds.
fn machine(device: Device) -> String {
    let name = match device {
        Device::Cuda(index) => crescendo_device::cuda::name(index).unwrap_or_default(),
        _ => std::fs::read_to_string("/proc/cpuinfo")
            .ok()
            .and_then(|text| text.lines().find(|line| line.starts_with("model name")).map(str::to_owned))
            .unwrap_or_default(),
    };
    format!("{} {} {name}", std::env::consts::ARCH, crescendo_device::kind(device))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::curate::unit::tests::{drawing_job, paths};

    #[test]
    fn another_base_or_library_is_seen() {
        let folder = tempfile::tempdir().expect("make a folder");
        let root = folder.path();
        let job = drawing_job(root);
        let of = || of_stage(&job, 0, &paths(root), Device::Cpu);
        let first = of();
        let named: Vec<&str> = first.iter().filter_map(|line| line.split(' ').next()).collect();
        assert!(named.contains(&"base.safetensors") && named.contains(&"subjects"), "{first:?}");
        assert_eq!(of(), first);
        let base = root.join("base.safetensors");
        let mut bytes = std::fs::read(&base).expect("read");
        *bytes.last_mut().expect("some") ^= 1;
        std::fs::write(&base, bytes).expect("write");
        let second = of();
        assert_ne!(second, first);
        std::fs::remove_file(root.join("subjects/index.json")).expect("remove");
        assert_ne!(of(), second);
    }
}
