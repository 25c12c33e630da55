//! `up.json`: what `up` runs and where, for the other commands.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::failure::Failure;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UpState {
    /// Absolute folder of the cluster.
    pub dir: PathBuf,
    /// Process id of `crescendo up`.
    pub pid: u32,
    /// host:port of the controller's gRPC server.
    pub controller: String,
    /// Root of pair shards and checkpoints.
    pub object_store: String,
    /// What relative paths of a spec start from.
    pub library_root: PathBuf,
    pub processes: Vec<ProcessState>,
}

/// One process of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessState {
    pub name: String,
    /// Absent while it is not running.
    pub pid: Option<u32>,
    /// host:port of its gRPC server and of its metrics, absent until it has served once.
    pub grpc: Option<String>,
    pub metrics: Option<String>,
    pub log: PathBuf,
    /// Starts after the first.
    pub restarts: u32,
}

/// Where the newest cluster of this user is noted, whatever its folder.
pub fn newest_path() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base =
        absolute("XDG_STATE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/state")))?;
    Some(base.join("crescendo/up.json"))
}

/// The state of the cluster in `dir`, or of the newest one; and where it was looked for.
pub fn find(dir: Option<&Path>) -> Result<(PathBuf, Option<UpState>), Failure> {
    let path = match dir {
        Some(dir) => dir.join("up.json"),
        None => newest_path().unwrap_or_else(|| PathBuf::from(".crescendo/up.json")),
    };
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((path, None)),
        Err(error) => return Err(Failure::other(format!("read {}: {error}", path.display()))),
    };
    let state =
        serde_json::from_slice(&text).map_err(Failure::from_error(format!("read {}", path.display())))?;
    Ok((path, Some(state)))
}

/// Puts a file in place as a whole: a reader sees the old content or the new one.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = PathBuf::from(temporary);
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder)?;
    }
    let mut file = std::fs::File::create(&temporary)?;
    file.write_all(content)?;
    drop(file);
    std::fs::rename(&temporary, path)
}

impl UpState {
    /// Writes the state into the cluster's folder and notes it as the newest.
    pub fn write(&self) -> io::Result<()> {
        let text = format!("{}\n", serde_json::to_string_pretty(self)?);
        replace(&self.dir.join("up.json"), text.as_bytes())?;
        if let Some(path) = newest_path() {
            replace(&path, text.as_bytes())?;
        }
        Ok(())
    }

    /// Takes the state away again, unless another cluster has been started since.
    pub fn remove(dir: &Path) {
        // What cannot be removed says where nothing is any more; the commands cope with that.
        let _ = std::fs::remove_file(dir.join("up.json"));
        let Some(path) = newest_path() else { return };
        let ours = std::fs::read(&path)
            .ok()
            .and_then(|text| serde_json::from_slice::<UpState>(&text).ok())
            .is_some_and(|state| state.dir == dir);
        if ours {
            let _ = std::fs::remove_file(&path);
        }
    }
}
