//! Why a unit is not made, and whether that is the curator's, its own, or may pass.

use crate::curate::mirror::MirrorError;
use crate::curate::parent_stage::ParentStageError;
use crate::filters::judge::JudgeError;
use crate::llm::EndpointError;
use crate::sources::SourceError;
use crate::sources::import::{ImportError, RecordsError};
use crescendo_core::records::FailureKind;
use crescendo_dataset::shard::ShardError;
use crescendo_model::ModelError;

/// Why a unit, or a whole stage, cannot be curated.
#[derive(Debug, thiserror::Error)]
pub enum UnitError {
    #[error("the spec has no stage {index}")]
    NoStage { index: u32 },
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("similarity filter: {0}")]
    Filter(#[from] ModelError),
    #[error("what an earlier stage made: {0}")]
    Earlier(#[from] ParentStageError),
    #[error("judge: {0}")]
    Judge(#[from] JudgeError),
    /// The stage's source or filters, before any unit is begun.
    #[error(transparent)]
    Opening(Box<UnitError>),
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    #[error(transparent)]
    Shard(#[from] ShardError),
    #[error("the lease is lost")]
    Abandoned,
    #[error("making the unit panicked")]
    Panicked,
}

impl UnitError {
    /// Whether it is this curator that cannot open the stage, or a failure that may pass or is the unit's own.
    pub fn kind(&self) -> FailureKind {
        let lasts = match self {
            UnitError::NoStage { .. } | UnitError::Mirror(MirrorError::Missing { .. }) => true,
            UnitError::Opening(cause) => lasts(cause.as_ref()),
            // Label files are gone through with the first unit.
            UnitError::Source(SourceError::Import(ImportError::Records(RecordsError::Read {
                source,
                ..
            }))) => lasts(source),
            UnitError::Source(_)
            | UnitError::Filter(_)
            | UnitError::Earlier(_)
            | UnitError::Judge(_)
            | UnitError::Mirror(_)
            | UnitError::Shard(_)
            | UnitError::Abandoned
            | UnitError::Panicked => false,
        };
        if lasts { FailureKind::Source } else { FailureKind::Passing }
    }

    /// The endpoint's failure that this one rests on, if it does.
    pub fn endpoint(&self) -> Option<&EndpointError> {
        let first: &(dyn std::error::Error + 'static) = self;
        std::iter::successors(Some(first), |error| error.source()).find_map(|error| error.downcast_ref())
    }
}

/// Whether what could not be opened will not open later either: it is not there, may not be read, or is not what it should
/// be. What the machine or a language model is to blame for may pass.
fn lasts(error: &(dyn std::error::Error + 'static)) -> bool {
    use std::io::ErrorKind;
    let passes = |error: &(dyn std::error::Error + 'static)| {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            return !matches!(
                error.kind(),
                ErrorKind::NotFound
                    | ErrorKind::PermissionDenied
                    | ErrorKind::NotADirectory
                    | ErrorKind::IsADirectory
                    | ErrorKind::InvalidInput
                    | ErrorKind::InvalidData
                    | ErrorKind::UnexpectedEof
            );
        }
        if let Some(error) = error.downcast_ref::<ModelError>() {
            return matches!(error, ModelError::Torch(_) | ModelError::Caller(_));
        }
        if let Some(error) = error.downcast_ref::<EndpointError>() {
            return !matches!(error, EndpointError::Setup { .. });
        }
        // The controller names the checkpoint, so it is not this curator that lacks it.
        let no_checkpoint = matches!(error.downcast_ref(), Some(SourceError::NoCheckpoint { .. }));
        no_checkpoint || error.is::<ParentStageError>()
    };
    !std::iter::successors(Some(error), |error| error.source()).any(passes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::curate::unit::StageCurator;
    use crate::curate::unit::tests::{job, paths};
    use crescendo_core::spec::JobSpec;
    use serde_json::json;
    use std::path::Path;

    /// What a curator says when it opens a stage of `job`.
    fn opening(job: &JobSpec, root: &Path) -> (FailureKind, String) {
        let error = StageCurator::open(job, 0, &paths(root)).expect_err("it cannot be opened");
        let error = UnitError::Opening(Box::new(error));
        (error.kind(), crescendo_node::objects::with_causes(&error))
    }

    #[test]
    fn what_is_not_there_lasts_and_names_its_path() {
        let folder = tempfile::tempdir().expect("make a folder");
        let root = folder.path();
        let good = job(root, 1, Some((-1.0, 1.0)));
        let (at, absent) = (|file: &str| root.join(file).display().to_string(), "No such file or directory");

        std::fs::rename(root.join("subjects"), root.join("elsewhere")).expect("rename");
        let (kind, told) = opening(&good, root);
        assert_eq!(kind, FailureKind::Source);
        assert!(told.contains(&at("subjects")) && told.contains(absent), "{told}");
        std::fs::rename(root.join("elsewhere"), root.join("subjects")).expect("rename");

        std::fs::remove_file(root.join("encoder.safetensors")).expect("remove");
        let (kind, told) = opening(&good, root);
        assert_eq!(kind, FailureKind::Source);
        assert!(told.contains(&at("encoder.safetensors")) && told.contains(absent), "{told}");
        std::fs::write(root.join("encoder.safetensors"), "version https://git-lfs").expect("write");
        let (kind, told) = opening(&good, root);
        assert_eq!(kind, FailureKind::Source, "{told}");

        for format in ["uno1m", "uno-train", "webdataset"] {
            let mut imported = job(root, 1, None);
            imported.stages[0].data.source = serde_json::from_value(json!({
                "source": "import", "format": format, "path": "uno-1n", "minScore": 0.0, "resolution": 512,
            }))
            .expect("a source");
            let (kind, told) = opening(&imported, root);
            assert_eq!(kind, FailureKind::Source, "{format}");
            assert!(told.contains(&at("uno-1n")), "{format}: {told}");
        }
    }

    #[test]
    fn what_may_pass_is_told_apart() {
        let io = |kind: std::io::ErrorKind| {
            let source = std::io::Error::new(kind, "as the test wants");
            let import = ImportError::Read { path: "/x".into(), source };
            UnitError::Opening(Box::new(UnitError::Source(import.into()))).kind()
        };
        assert_eq!(io(std::io::ErrorKind::PermissionDenied), FailureKind::Source);
        assert_eq!(io(std::io::ErrorKind::TimedOut), FailureKind::Passing);
        let model = |error| UnitError::Opening(Box::new(UnitError::Filter(error))).kind();
        assert_eq!(model(ModelError::Torch("out of memory".into())), FailureKind::Passing);
        let reason = String::new();
        assert_eq!(model(ModelError::File { path: "/x".into(), reason }), FailureKind::Source);
        let endpoint =
            |error| UnitError::Opening(Box::new(UnitError::Judge(JudgeError::Endpoint(error)))).kind();
        let (name, reason) = (String::new(), String::new());
        assert_eq!(endpoint(EndpointError::Setup { name, reason }), FailureKind::Source);
        let (name, reason) = (String::new(), String::new());
        assert_eq!(endpoint(EndpointError::Busy { name, reason }), FailureKind::Passing);
        // A tar that is damaged costs its own unit, and the curator goes on.
        let tar = ImportError::Read {
            path: "/x.tar".into(),
            source: std::io::Error::new(std::io::ErrorKind::NotFound, "gone"),
        };
        assert_eq!(UnitError::Source(tar.into()).kind(), FailureKind::Passing);
        let key = String::from("sets/x");
        assert_eq!(UnitError::Mirror(MirrorError::Missing { key }).kind(), FailureKind::Source);
    }

    #[test]
    fn an_endpoint_that_is_to_blame_is_found() {
        let down = || EndpointError::Busy { name: "vlm".into(), reason: "so it is".into() };
        let judge = UnitError::from(JudgeError::from(down()));
        assert!(judge.endpoint().is_some_and(EndpointError::is_retryable));
        assert!(UnitError::Abandoned.endpoint().is_none());
    }
}
