//! The file that says where a process listens: it appears whole, once the process serves.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;

/// Writes `{"grpc":"host:port","metrics":"host:port"}` to `path`, atomically.
pub fn write_port_file(path: &Path, grpc: SocketAddr, metrics: SocketAddr) -> std::io::Result<()> {
    let text = serde_json::json!({"grpc": grpc.to_string(), "metrics": metrics.to_string()}).to_string();
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder)?;
    }
    let mut file = std::fs::File::create(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.write_all(b"\n")?;
    drop(file);
    std::fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_both_addresses() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/ports.json");
        write_port_file(&path, "127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap()).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(value, serde_json::json!({"grpc": "127.0.0.1:1", "metrics": "127.0.0.1:2"}));
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }
}
