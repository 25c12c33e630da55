//! Compiles the protos with protox, so that no protoc has to be on the machine.

use std::path::{Path, PathBuf};

use prost::Message as _;

const ROOT: &str = "proto";
const WIRE: [&str; 7] = ["access", "agent", "checkpoint", "curation", "job", "node", "pair"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed={ROOT}");
    let files: Vec<PathBuf> =
        WIRE.iter().map(|name| Path::new(ROOT).join(format!("crescendo/v1/{name}.proto"))).collect();
    let descriptors = protox::compile(&files, [ROOT])?;
    let out_dir = PathBuf::from(std::env::var("OUT_DIR")?);
    // Only what is on the wire is shown through reflection.
    std::fs::write(out_dir.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        // Pictures and tensors are handed on without a copy.
        .bytes(".crescendo.v1.TensorData.data")
        .btree_map(".")
        .compile_fds(descriptors)?;
    let records = protox::compile([Path::new(ROOT).join("crescendo/store/v1/records.proto")], [ROOT])?;
    tonic_prost_build::configure().btree_map(".").compile_fds(records)?;
    Ok(())
}
