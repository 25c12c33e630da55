//! The specs that come with the project, and those that `make ablations` makes of them.

use std::path::{Path, PathBuf};
use std::process::Command;

use crescendo_core::spec;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn parse(path: &Path) -> spec::Parsed {
    let yaml = std::fs::read(path).expect("the spec can be read");
    spec::read(&yaml, None).unwrap_or_else(|problems| panic!("{}: {problems:?}", path.display()))
}

#[test]
fn every_example_is_right() {
    let files = std::fs::read_dir(root().join("examples")).expect("the examples are there");
    let specs: Vec<PathBuf> = files
        .map(|file| file.expect("a file").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    assert!(specs.len() >= 3);
    for path in &specs {
        assert_eq!(parse(path).warnings, [], "{}", path.display());
    }
}

#[test]
fn every_ablation_is_right_and_another() {
    let folder = std::env::temp_dir().join(format!("crescendo-ablations-{}", std::process::id()));
    let written = Command::new("python3")
        .args(["bench/ablations.py", "--specs-only", "--steps", "0.3", "--out"])
        .arg(&folder)
        .current_dir(root())
        .status()
        .expect("python3 is there");
    assert!(written.success());
    let specs: Vec<spec::JobSpec> = std::fs::read_dir(&folder)
        .expect("the folder is there")
        .map(|job| parse(&job.expect("a job").path().join("spec.yaml")).spec)
        .collect();
    std::fs::remove_dir_all(&folder).expect("the folder can be removed");
    // Five modes of positions, three other offsets, two longer ones, stage II alone, two second references, two further filters;
    // three seeds.
    assert_eq!(specs.len(), 45);
    assert_eq!(specs.iter().enumerate().filter(|(i, spec)| specs[..*i].contains(spec)).count(), 0);
}
