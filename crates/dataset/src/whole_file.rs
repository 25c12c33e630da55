//! Files that appear whole or not at all: written under a name of their own in the same folder, then renamed.

use std::fs::{File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// Puts a file with this content at `path`, durably: after a crash there is what was there before, or all of it.
///
/// It is for whom the umask allows, not private as temporary files are, or for those that the file it replaces was for.
pub fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = folder_of(path);
    let mut file = tempfile::Builder::new().permissions(Permissions::from_mode(0o666)).tempfile_in(folder)?;
    file.write_all(content)?;
    file.as_file().sync_all()?;
    take_over_mode(file.path(), path)?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(folder)?.sync_all()
}

/// Gives a new file the permissions of the plain file that it is about to replace, if there is one.
pub fn take_over_mode(new: &Path, replaced: &Path) -> io::Result<()> {
    match replaced.symlink_metadata() {
        Ok(found) if found.is_file() => {
            std::fs::set_permissions(new, Permissions::from_mode(found.permissions().mode() & 0o777))
        }
        Ok(_) | Err(_) => Ok(()),
    }
}

/// The folder that a file is in.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        path.metadata().expect("it is there").permissions().mode() & 0o777
    }

    #[test]
    fn a_file_is_for_whom_the_umask_or_the_one_before_says() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, plain) = (folder.path().join("a"), folder.path().join("plain"));
        File::create(&plain).expect("write");
        write(&path, b"one").expect("written");
        assert_eq!(mode(&path), mode(&plain));
        std::fs::set_permissions(&path, Permissions::from_mode(0o664)).expect("set");
        write(&path, b"two").expect("written");
        assert_eq!((mode(&path), std::fs::read(&path).expect("read")), (0o664, b"two".to_vec()));
        assert!(write(&folder.path().join("absent/a"), b"").is_err());
        assert_eq!(std::fs::read_dir(folder.path()).expect("list").count(), 2, "nothing is left behind");
    }
}
