//! Where the paths of a spec lead on this machine.

pub mod fingerprint;

use std::path::{Path, PathBuf};

/// A path that leads nowhere on this machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("path {path} is below the object store's root, which is not a folder of this machine")]
pub struct PathError {
    pub path: String,
}

/// Where the paths of a spec lead.
#[derive(Clone, Debug)]
pub struct PathResolver {
    /// What relative paths are below.
    pub library: PathBuf,
    /// The object store's root, if it is a folder of this machine, or else the folder with copies from it.
    pub store: Option<PathBuf>,
}

impl PathResolver {
    /// For an object store at `url`.
    pub fn new(library: &Path, url: &str) -> PathResolver {
        let store = url.strip_prefix("file://").map(PathBuf::from);
        PathResolver { library: library.to_owned(), store }
    }

    /// The same, with the object store's root at `folder`.
    pub fn with_store_at(self, folder: &Path) -> PathResolver {
        PathResolver { store: Some(folder.to_owned()), ..self }
    }

    /// A path of a spec: absolute, below the library's root, or `store:` and a key.
    pub fn resolve(&self, path: &str) -> Result<PathBuf, PathError> {
        match (path.strip_prefix("store:"), &self.store) {
            (None, _) => Ok(self.library.join(path)),
            (Some(key), Some(root)) => Ok(root.join(key.trim_start_matches('/'))),
            (Some(_), None) => Err(PathError { path: path.to_owned() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_below_their_roots() {
        let paths = PathResolver::new(Path::new("/library"), "file:///objects");
        let resolve = |path| paths.resolve(path).map_err(|e| e.to_string());
        assert_eq!(resolve("a/b"), Ok(PathBuf::from("/library/a/b")));
        assert_eq!(resolve("/a/b"), Ok(PathBuf::from("/a/b")));
        assert_eq!(resolve("store:sets/x"), Ok(PathBuf::from("/objects/sets/x")));
        let remote = PathResolver::new(Path::new("/library"), "s3://bucket");
        assert!(remote.resolve("store:sets/x").is_err());
    }
}
