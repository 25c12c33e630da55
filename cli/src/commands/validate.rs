//! `crescendo validate`: no cluster is needed.

use std::io::Read as _;
use std::path::Path;

use crescendo_core::spec::{self, MAX_SPEC_BYTES, Problem};

use super::held_out::{self, HeldOut, Look};
use crate::args::{Common, FileArgs, Output};
use crate::failure::Failure;
use crate::show::{self, json, problems, width};

pub fn run(common: &Common, args: &FileArgs) -> Result<(), Failure> {
    let yaml = read_spec(&args.file)?;
    let (parsed, look) = match spec::read(&yaml, None) {
        Ok(parsed) => {
            // What relative paths start from where `crescendo up` is started here as well.
            let look = held_out::look(&parsed, Path::new(""));
            (parsed, look)
        }
        Err(found) => return refuse(common, &args.file, &yaml, &found),
    };
    let Look { held_out, problems, warnings } = look;
    if !problems.is_empty() {
        return refuse(common, &args.file, &yaml, &problems);
    }
    let mut all = parsed.warnings;
    all.extend(warnings);
    all.sort();
    let warnings: Vec<Problem> = all.into_iter().map(Problem::from).collect();
    match common.output {
        Output::Table => {
            show::out(spec::to_yaml(&parsed.spec));
            for found in held_out.iter().filter(|found| !found.held_out.is_empty()) {
                show::errln(width::wrapped(&found.text(), width::of_stderr(), 4));
            }
            show::err(problems::warnings(&warnings));
        }
        Output::Json => {
            let resolved =
                serde_json::to_value(&parsed.spec).map_err(Failure::from_error("write the spec as JSON"))?;
            json::print(&serde_json::json!({
                "valid": true,
                "problems": [],
                "warnings": json::problems(&warnings),
                "heldOut": held_out.iter().map(HeldOut::json).collect::<Vec<_>>(),
                "resolved": resolved,
            }));
        }
    }
    Ok(())
}

fn refuse(common: &Common, file: &Path, yaml: &[u8], found: &[Problem]) -> Result<(), Failure> {
    match common.output {
        Output::Table => show::err(problems::render(file, yaml, found)),
        Output::Json => {
            json::print(&serde_json::json!({"valid": false, "problems": json::problems(found)}));
        }
    }
    Err(Failure::InvalidSpec)
}

/// The bytes of a spec, one more than allowed at most; `-` is standard input.
pub fn read_spec(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let most = MAX_SPEC_BYTES as u64 + 1;
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(most).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(most).read_to_end(&mut bytes))
    };
    read.map_err(Failure::from_error(format!("read {}", path.display())))?;
    Ok(bytes)
}
