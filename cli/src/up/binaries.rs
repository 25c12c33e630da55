//! Finding the other programs of Crescendo: beside this one, else on PATH.

use std::path::{Path, PathBuf};

use crate::failure::Failure;

pub fn find(name: &str) -> Result<PathBuf, Failure> {
    let own = std::env::current_exe().ok();
    let beside = own.as_deref().and_then(Path::parent).map(Path::to_owned);
    let on_path =
        std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
    search(name, beside.clone(), on_path).ok_or_else(|| {
        let beside = beside.map_or_else(String::new, |folder| format!(" in {}", folder.display()));
        Failure::other(format!(
            "there is no {name}{beside}, nor on PATH; `cargo build --workspace` builds all programs, or install it beside this one"
        ))
    })
}

fn search(name: &str, beside: Option<PathBuf>, on_path: Vec<PathBuf>) -> Option<PathBuf> {
    beside.into_iter().chain(on_path).map(|folder| folder.join(name)).find(|file| is_program(file))
}

fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    file.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_beside_goes_first_and_must_be_one() {
        use std::os::unix::fs::PermissionsExt as _;
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let find = || search("prog", Some(here.path().to_owned()), vec![there.path().to_owned()]);
        std::fs::write(here.path().join("prog"), "no program").unwrap();
        assert_eq!(find(), None);
        for folder in [&there, &here] {
            let file = folder.path().join("prog");
            std::fs::write(&file, "").unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
            assert_eq!(find(), Some(file));
        }
    }
}
