//! `crescendo validate`: no cluster is needed.

use std::io::Read as _;
use std::path::Path;

use crescendo_core::spec::{self, MAX_SPEC_BYTES};

use crate::args::{Common, FileArgs, Output};
use crate::failure::Failure;
use crate::show::{self, json, problems};

pub fn run(common: &Common, args: &FileArgs) -> Result<(), Failure> {
    let yaml = read_spec(&args.file)?;
    match (spec::parse(&yaml), common.output) {
        (Ok(spec), Output::Table) => {
            show::out(spec::to_yaml(&spec));
            Ok(())
        }
        (Ok(spec), Output::Json) => {
            let resolved =
                serde_json::to_value(&spec).map_err(Failure::from_error("write the spec as JSON"))?;
            json::print(&serde_json::json!({"valid": true, "problems": [], "resolved": resolved}));
            Ok(())
        }
        (Err(found), Output::Table) => {
            show::err(problems::render(&args.file, &yaml, &found));
            Err(Failure::InvalidSpec)
        }
        (Err(found), Output::Json) => {
            json::print(&serde_json::json!({"valid": false, "problems": json::problems(&found)}));
            Err(Failure::InvalidSpec)
        }
    }
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
