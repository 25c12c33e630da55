//! The second filter: a judge that scores, part by part, how well the subject was kept.
//!
//! ```text
//!   pairs that passed the similarity filter
//!      │
//!      ├─ kind: endpoint ─▶ for each reference: parts? ─▶ differences? ─▶ scores? ─▶ mean of the parts
//!      │                                                                 └ cannot be read: asked again, then judge_unparseable
//!      └─ kind: clip ─────▶ cosines of features, mapped to 0 to 4
//!      ▼
//!   score of the pair: its worst reference; under `min`: judge_low
//! ```
//!
//! | module | what it has |
//! |---|---|
//! | [`dialogue`] | what the model is told and asked: pure |
//! | [`scores`] | its last answer, read strictly: pure |
//! | [`llm_judge`] | the judge behind an endpoint |
//! | [`clip`] | the local judge, the weaker of the two |
//!
//! The course is that of the UNO paper, section 3.2; which model it asked is not published.

pub mod clip;
pub mod dialogue;
pub mod llm_judge;
pub mod scores;

use crate::candidates::Rejected;
use crate::llm::network::LlmContext;
use crate::llm::{Chat, EndpointError};
use crate::paths::{PathError, PathResolver};
use clip::ClipJudge;
use crescendo_core::rejection::Rejection;
use crescendo_core::spec::{EndpointSpec, JudgeFilter, JudgeKind};
use crescendo_dataset::pair::Pair;
use crescendo_model::ModelError;
use llm_judge::LlmJudge;
use serde_json::Value;
use std::sync::atomic::AtomicBool;

/// Why pairs cannot be judged. No pair is to blame; the unit is tried again later.
#[derive(Debug, thiserror::Error)]
pub enum JudgeError {
    #[error("the spec has no endpoint `{name}`")]
    NoEndpoint { name: String },
    #[error(transparent)]
    Path(#[from] PathError),
    #[error("{0}")]
    Endpoint(#[from] EndpointError),
    #[error("clip: {0}")]
    Clip(#[from] ModelError),
    #[error("a picture cannot be encoded: {reason}")]
    Picture { reason: String },
    #[error("a conversation ended: {reason}")]
    Task { reason: String },
    #[error("the unit was given up")]
    Abandoned,
}

/// What the judge says of one pair.
#[derive(Debug)]
pub struct Judged {
    /// 0 to 4; none where nothing was compared.
    pub score: Option<f64>,
    pub outcome: Result<Pair, Rejected>,
}

fn verdict(pair: Pair, score: f64, min: f64) -> Result<Pair, Rejected> {
    if score < min { Err(Rejected::of(Rejection::JudgeLow, pair)) } else { Ok(pair) }
}

/// The judge of a stage, opened.
#[derive(Debug)]
pub struct Judge {
    min: f64,
    by: By,
}

#[derive(Debug)]
enum By {
    Llm(Box<LlmJudge>),
    Clip(Box<ClipJudge>),
}

impl Judge {
    /// Opens what `spec` names.
    pub fn open(
        spec: &JudgeFilter,
        endpoints: &[EndpointSpec],
        paths: &PathResolver,
        llm: Option<&LlmContext>,
    ) -> Result<Judge, JudgeError> {
        let by = match &spec.kind {
            JudgeKind::Endpoint { endpoint: name, retries, image_side } => {
                let endpoint = endpoints.iter().find(|endpoint| endpoint.name == *name);
                let endpoint = endpoint.ok_or_else(|| JudgeError::NoEndpoint { name: name.clone() })?;
                let chat = Chat::open(endpoint, llm)?;
                By::Llm(Box::new(LlmJudge { chat, retries: *retries, image_side: *image_side }))
            }
            JudgeKind::Clip { weights, tokenizer, likeness, agreement } => {
                let weights = paths.resolve(weights)?;
                let tokenizer = paths.resolve(tokenizer)?;
                By::Clip(Box::new(ClipJudge::open(&weights, &tokenizer, *likeness, *agreement)?))
            }
        };
        Ok(Judge { min: spec.min, by })
    }

    /// Judges pairs, in their order: each with its score noted, or why it is rejected. A pair without references
    /// passes. `abandoned` ends it early.
    pub fn judge(&self, pairs: Vec<Pair>, abandoned: &AtomicBool) -> Result<Vec<Judged>, JudgeError> {
        match &self.by {
            By::Llm(judge) => judge.judge(pairs, self.min, abandoned),
            By::Clip(judge) => Ok(judge.judge(pairs, self.min)?),
        }
    }
}

/// Notes a score in the pair, and what it is made of in its provenance.
fn note(pair: &mut Pair, score: f64, details: Value) {
    pair.scores.insert("judge".to_owned(), (score * 1e6).round() / 1e6);
    if let Value::Object(fields) = &mut pair.provenance {
        fields.insert("judge".to_owned(), details);
    }
}

#[cfg(test)]
mod tests;
