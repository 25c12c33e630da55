//! Names of the files of a checkpoint that others than its writer look for, and keys of such files in the object store.

/// The trained adapter, float32, in the published naming.
pub const ADAPTER_FILE: &str = "dit_lora.safetensors";
/// All weights, where a stage trains them.
pub const MODEL_FILE: &str = "model.safetensors";

/// Whether `key` of the object store is that of a file in a checkpoint's folder: `jobs/JOB/STAGE/checkpoints/FOLDER/NAME`.
pub fn is_checkpoint_file(key: &str) -> bool {
    let parts: Vec<&str> = key.split('/').collect();
    let plain = |part: &&str| {
        let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        !part.is_empty() && !part.starts_with('.') && part.chars().all(known)
    };
    matches!(parts.as_slice(), ["jobs", _, _, "checkpoints", _, _]) && parts.iter().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_checkpoints_are_such() {
        assert!(is_checkpoint_file("jobs/a-1/stage-1/checkpoints/step-00000100-g2/dit_lora.safetensors"));
        for other in [
            "",
            "jobs/a-1/stage-1/pairs/unit-000000-l1.tar",
            "jobs/a-1/stage-1/checkpoints/step-1-g1",
            "jobs/a-1/stage-1/checkpoints/../secret",
            "jobs/a-1/stage-1/checkpoints/.hidden/x",
            "jobs/a-1/stage-1/checkpoints/step-1-g1/a/b",
            "jobs//stage-1/checkpoints/step-1-g1/a",
            "/jobs/a-1/stage-1/checkpoints/step-1-g1/a",
            "other/a-1/stage-1/checkpoints/step-1-g1/a",
        ] {
            assert!(!is_checkpoint_file(other), "{other}");
        }
    }
}
