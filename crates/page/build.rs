//! Embeds `web/dist`, the built web page, if it is there.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;

const BUILT: &str = "../../web/dist";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let built = Path::new(BUILT);
    // A folder that is not there is looked for again at every build.
    println!("cargo:rerun-if-changed={BUILT}");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let mut paths = Vec::new();
    if built.is_dir() {
        list(built, &mut paths)?;
    }
    paths.sort();
    let mut files = String::from("&[\n");
    for (at, path) in paths.iter().enumerate() {
        let content = std::fs::read(path)?;
        let packed = gzip(&content)?;
        let raw_file = out.join(format!("{at}.raw"));
        let packed_file = out.join(format!("{at}.gz"));
        std::fs::write(&raw_file, &content)?;
        std::fs::write(&packed_file, &packed)?;
        let name = path.strip_prefix(built)?.to_str().ok_or("the name of a built file is not UTF-8")?;
        writeln!(
            files,
            "    File {{ path: {:?}, content: include_bytes!({raw_file:?}), gzipped: include_bytes!({packed_file:?}) }},",
            format!("/{name}"),
        )?;
    }
    files.push_str("]\n");
    std::fs::write(out.join("files.rs"), files)?;
    Ok(())
}

fn list(folder: &Path, into: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            list(&path, into)?;
        } else {
            println!("cargo:rerun-if-changed={}", path.display());
            into.push(path);
        }
    }
    Ok(())
}

fn gzip(content: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(content)?;
    encoder.finish()
}
