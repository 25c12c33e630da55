//! Compiles the protos with protoc (`PROTOC`), which etcd's client needs as well; `make setup` fetches it.

use std::path::{Path, PathBuf};

const ROOT: &str = "proto";
const WIRE: [&str; 13] = [
    "access",
    "agent",
    "checkpoint",
    "curation",
    "deletion",
    "job",
    "node",
    "object",
    "pair",
    "queue",
    "review",
    "sample",
    "view",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed={ROOT}");
    let files: Vec<PathBuf> =
        WIRE.iter().map(|name| Path::new(ROOT).join(format!("crescendo/v1/{name}.proto"))).collect();
    let out_dir = PathBuf::from(std::env::var("OUT_DIR")?);
    tonic_prost_build::configure()
        // Only what is on the wire is shown through reflection.
        .file_descriptor_set_path(out_dir.join("descriptors.bin"))
        // Pictures, tensors and files are handed on without a copy.
        .bytes(".crescendo.v1.TensorData.data")
        .bytes(".crescendo.v1.ReadCheckpointFileResponse.chunk")
        .bytes(".crescendo.v1.SendObjectRequest.chunk")
        .bytes(".crescendo.v1.ReadSamplesResponse.chunk")
        .btree_map(".")
        .compile_protos(&files, &[PathBuf::from(ROOT)])?;
    let records = Path::new(ROOT).join("crescendo/store/v1/records.proto");
    tonic_prost_build::configure().btree_map(".").compile_protos(&[records], &[PathBuf::from(ROOT)])?;
    Ok(())
}
