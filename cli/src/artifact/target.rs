//! Where a file is to be put: checked before any work, filled in one move.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crescendo_dataset::whole_file::{folder_of, take_over_mode};
use tempfile::TempDir;

use crate::failure::Failure;

/// A file that is to come, and a folder beside it for what is on the way there. The folder goes with this.
pub struct Target {
    path: PathBuf,
    replace: bool,
    scratch: TempDir,
}

impl Target {
    /// Refuses what cannot end well: a folder that is missing or may not be written to, and a file that is there already,
    /// unless it is to be replaced.
    pub fn prepare(path: &Path, replace: bool) -> Result<Target, Failure> {
        let folder = folder_of(path);
        if path.is_dir() {
            return Err(Failure::Usage(format!(
                "{0} is a folder: name the file in it, e.g. {1}",
                path.display(),
                path.join("lora.safetensors").display()
            )));
        }
        if path == Path::new("-") {
            return Err(Failure::Usage(
                "- would be standard output, which a verified file is not written to: name a file".into(),
            ));
        }
        if path.file_name().is_none() {
            return Err(Failure::Usage(format!("{} is not the name of a file", path.display())));
        }
        if !folder.is_dir() {
            return Err(Failure::Usage(format!("there is no folder {}", folder.display())));
        }
        match path.symlink_metadata() {
            Ok(_) if !replace => return Err(already_there(path)),
            // The move would put a file in the place of a device, a pipe or a link.
            Ok(found) if !found.is_file() => {
                let path = path.display();
                return Err(Failure::Usage(format!(
                    "{path} is no plain file, and is not replaced; name another"
                )));
            }
            Ok(_) | Err(_) => {}
        }
        // On the same file system, so that one move puts the file in place.
        let scratch = tempfile::Builder::new()
            .prefix(".crescendo-")
            .tempdir_in(folder)
            .map_err(Failure::from_error(format!("write to {}", folder.display())))?;
        Ok(Target { path: path.to_owned(), replace, scratch })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A place for something on the way.
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// Puts a finished file of the scratch folder in place, durably and as a whole.
    pub fn fill(self, with: &Path) -> Result<(), Failure> {
        let failed = |error: io::Error| Failure::other(format!("write {}: {error}", self.path.display()));
        File::open(with).and_then(|file| file.sync_all()).map_err(failed)?;
        if !self.replace {
            // A link is refused where something has come meanwhile; a rename would replace it.
            match std::fs::hard_link(with, &self.path) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    return Err(already_there(&self.path));
                }
                // Not all file systems have links.
                Err(_) => {}
            }
        }
        take_over_mode(with, &self.path).and_then(|()| std::fs::rename(with, &self.path)).map_err(failed)
    }
}

fn already_there(path: &Path) -> Failure {
    Failure::Usage(format!("{} is there already; --force replaces it", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(path: &Path, replace: bool) -> String {
        Target::prepare(path, replace).err().map(|failure| failure.to_string()).unwrap_or_default()
    }

    #[test]
    fn what_is_in_the_way_is_told_before_any_work() {
        let folder = tempfile::tempdir().unwrap();
        let there = folder.path().join("there.safetensors");
        std::fs::write(&there, "old").unwrap();
        assert!(refusal(&there, false).ends_with("--force replaces it"));
        assert!(refusal(folder.path(), true).contains("is a folder"));
        assert!(refusal(&folder.path().join("no/such.safetensors"), false).starts_with("there is no folder"));
        let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "nothing is left behind: {left:?}");
    }

    #[test]
    fn only_a_plain_file_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(folder.path().join("elsewhere"), &link).unwrap();
        assert!(refusal(&link, true).contains("no plain file"));
        assert!(refusal(Path::new("/dev/null"), true).contains("no plain file"));
    }

    #[test]
    fn a_file_arrives_whole_and_replaces_only_what_it_may() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lora.safetensors");
        for (content, replace) in [("new", false), ("newer", true)] {
            let target = Target::prepare(&path, replace).unwrap();
            let made = target.scratch("made");
            std::fs::write(&made, content).unwrap();
            target.fill(&made).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
        }
        // One that comes while the copy is made stays.
        let other = folder.path().join("other.safetensors");
        let target = Target::prepare(&other, false).unwrap();
        let made = target.scratch("made");
        std::fs::write(&made, "ours").unwrap();
        std::fs::write(&other, "theirs").unwrap();
        assert!(target.fill(&made).unwrap_err().to_string().contains("is there already"));
        assert_eq!(std::fs::read_to_string(&other).unwrap(), "theirs");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is left behind");
    }
}
