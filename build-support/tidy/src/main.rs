//! Prints what [`crescendo_tidy`] finds in the repository of the current folder.

use std::path::Path;

use anyhow::Result;
use crescendo_tidy::circles::circles;
use crescendo_tidy::source::{Crate, files, roots};
use crescendo_tidy::{functions, uses};

fn main() -> Result<()> {
    let repository = Path::new(".");
    let files = files(repository)?;
    for path in &files {
        let text = std::fs::read_to_string(repository.join(path))?;
        for function in functions::long(path, &text, 80)? {
            println!("{}: {} has {} lines", path.display(), function.name, function.lines);
        }
    }
    for root in roots(&files) {
        let found = Crate::read(repository, &root)?;
        for circle in circles(&uses::between_files(&found)) {
            let files: Vec<String> =
                circle.iter().map(|at| found.files[*at].path.display().to_string()).collect();
            println!("circle: {}", files.join(" "));
            let edges = uses::between_files(&found);
            for from in &circle {
                for to in edges.get(from).into_iter().flatten().filter(|to| circle.contains(to)) {
                    println!(
                        "  {} uses {}",
                        found.files[*from].path.display(),
                        found.files[*to].path.display()
                    );
                }
            }
        }
        let rooms = uses::between_rooms(&found);
        let arrows: usize = rooms.values().map(std::collections::BTreeSet::len).sum();
        println!(
            "{}: {} rooms, {arrows} arrows, {} circles",
            root.display(),
            rooms.len(),
            circles(&rooms).len()
        );
    }
    Ok(())
}
