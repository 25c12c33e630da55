//! The file of a spec, with what the command line sets in it.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use crescendo_core::spec::{MAX_SPEC_BYTES, Problem};

use crate::args::{Common, Output};
use crate::failure::Failure;
use crate::show::{self, json, problems};
use crate::spec_edit::EditedSpec;
use crate::spec_edit::assignment::{Assignment, check_once};

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

/// A spec on its way to the check, and how what is wrong with it is shown.
pub struct SpecFile {
    path: PathBuf,
    /// As it is in the file.
    written: Vec<u8>,
    /// Where fields are set: the text with them.
    edited: Option<EditedSpec>,
}

impl SpecFile {
    /// Reads the file and sets the fields. Without any, its bytes stay as they are.
    pub fn read(common: &Common, path: &Path, set: &[Assignment]) -> Result<SpecFile, Failure> {
        SpecFile::of_bytes(common, path, read_spec(path)?, set)
    }

    /// The same of what is in no file; `name` stands for it in messages.
    pub fn of_bytes(
        common: &Common,
        name: &Path,
        written: Vec<u8>,
        set: &[Assignment],
    ) -> Result<SpecFile, Failure> {
        check_once(set.iter().map(Assignment::path)).map_err(Failure::Usage)?;
        let file = SpecFile { path: name.to_owned(), written, edited: None };
        if set.is_empty() { Ok(file) } else { file.with(common, set) }
    }

    /// The same with more fields set.
    pub fn with(&self, common: &Common, set: &[Assignment]) -> Result<SpecFile, Failure> {
        let mut edited = match &self.edited {
            Some(edited) => edited.clone(),
            None => EditedSpec::read(&self.written).map_err(|found| self.refuse(common, found))?,
        };
        for assignment in set {
            edited.set(assignment).map_err(Failure::Usage)?;
        }
        Ok(SpecFile { path: self.path.clone(), written: self.written.clone(), edited: Some(edited) })
    }

    /// `metadata.name`, if fields are set and it is there.
    pub fn name(&self) -> Option<String> {
        self.edited.as_ref()?.name()
    }

    /// What is checked.
    pub fn yaml(&self) -> Vec<u8> {
        self.edited.as_ref().map_or_else(|| self.written.clone(), EditedSpec::yaml)
    }

    /// Problems, or warnings, of [`SpecFile::yaml`] as those of the file.
    pub fn in_file(&self, found: Vec<Problem>) -> Vec<Problem> {
        match &self.edited {
            Some(edited) => edited.in_file(found),
            None => found,
        }
    }

    /// Shows what is wrong with [`SpecFile::yaml`].
    pub fn refuse(&self, common: &Common, found: Vec<Problem>) -> Failure {
        let found = self.in_file(found);
        match common.output {
            Output::Table => show::err(problems::render(&self.path, &self.written, &found)),
            Output::Json => {
                json::print(&serde_json::json!({"valid": false, "problems": json::problems(&found)}))
            }
        }
        Failure::InvalidSpec
    }
}
