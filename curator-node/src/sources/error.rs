//! Why a stage's candidates cannot be had.

use crescendo_model::ModelError;

use super::compose::ComposeError;
use super::import::ImportError;
use super::prompts::PromptError;
use crate::paths::PathError;
use crate::pipeline::PipelineError;

/// Why a source cannot be opened, or a unit of it made.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error(transparent)]
    Compose(#[from] ComposeError),
    #[error(transparent)]
    Import(#[from] ImportError),
    #[error("format uno-1m has one reference a pair; the stage wants {references}")]
    References { references: u32 },
    #[error(transparent)]
    Path(#[from] PathError),
    #[error("the stage says nothing of what is to be drawn: set data.prompts or data.subjects")]
    NoPrompts,
    #[error("the stage takes the pairs of another one: none are made for it")]
    MadeElsewhere,
    #[error(transparent)]
    Prompts(#[from] Box<PromptError>),
    #[error("the stage has neither data.detector nor data.subjects")]
    NoDetector,
    #[error("there is no checkpoint of stage {stage} to draw with")]
    NoCheckpoint { stage: String },
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    #[error("drawing: {0}")]
    Model(#[from] ModelError),
}
