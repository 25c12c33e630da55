//! A disk of a few MiB that can be filled, freed, and made read-only: a tmpfs of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Unmounted when dropped.
pub struct SmallDisk {
    folder: tempfile::TempDir,
}

const FILLER: &str = "filler";

impl SmallDisk {
    /// One of `mib` MiB; nothing, with a line that says so, where this process may not mount, unless it has to: with
    /// `CRESCENDO_REQUIRE_MOUNTS` set that is a failed test.
    pub fn mount(mib: u32) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "crescendo-test"])
            .arg(folder.path())
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self { folder }),
            refused => {
                let required = std::env::var_os("CRESCENDO_REQUIRE_MOUNTS").is_some();
                assert!(
                    !required,
                    "CRESCENDO_REQUIRE_MOUNTS is set, and no disk can be mounted: {refused:?}"
                );
                println!("skipped: this process may not mount a small disk");
                None
            }
        }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    fn filler(&self) -> PathBuf {
        self.path().join(FILLER)
    }

    /// Takes all the room that is left.
    pub fn fill(&self) {
        use std::io::Write as _;
        let mut file =
            std::fs::File::options().create(true).append(true).open(self.filler()).expect("a file");
        for size_bytes in [1 << 20, 4096, 1] {
            let block = vec![0_u8; size_bytes];
            while file.write_all(&block).is_ok() {}
        }
    }

    /// Gives the room back that [`SmallDisk::fill`] took.
    pub fn free(&self) {
        std::fs::remove_file(self.filler()).expect("it was filled");
    }

    /// Whether it takes no writes at all.
    pub fn read_only(&self, read_only: bool) {
        let options = if read_only { "remount,ro" } else { "remount,rw" };
        let output =
            Command::new("mount").args(["-o", options]).arg(self.path()).output().expect("mount runs");
        assert!(output.status.success(), "{output:?}");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a process may still have a file open there, and the folder must be free to go.
        let unmounted = Command::new("umount").arg("-l").arg(self.path()).status();
        debug_assert!(unmounted.is_ok_and(|status| status.success()));
    }
}
