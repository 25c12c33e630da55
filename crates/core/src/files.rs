//! Names of the files of a checkpoint that others than its writer look for.

/// The trained adapter, float32, in the published naming.
pub const ADAPTER_FILE: &str = "dit_lora.safetensors";
/// All weights, where a stage trains them.
pub const MODEL_FILE: &str = "model.safetensors";
