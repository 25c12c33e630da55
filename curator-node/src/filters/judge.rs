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
use clip::{ClipJudge, ClipLimits};
use crescendo_core::rejection::Rejection;
use crescendo_core::spec::{EndpointSpec, JudgeFilter, JudgeKind};
use crescendo_dataset::pair::Pair;
use crescendo_model::ModelError;
use crescendo_model::tch::Device;
use llm_judge::LlmJudge;
use serde_json::Value;

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

/// Opens the judge that computes here, on `device`, if the filter names one: part of drawing a unit, on the curation thread.
pub fn open_local(
    filter: &JudgeFilter,
    paths: &PathResolver,
    device: Device,
) -> Result<Option<ClipJudge>, JudgeError> {
    match &filter.kind {
        JudgeKind::Endpoint { .. } => Ok(None),
        JudgeKind::Clip { weights, tokenizer, likeness, agreement } => {
            let limits = ClipLimits { min: filter.min, likeness: *likeness, agreement: *agreement };
            let (weights, tokenizer) = (paths.resolve(weights)?, paths.resolve(tokenizer)?);
            Ok(Some(ClipJudge::open(&weights, &tokenizer, limits, device)?))
        }
    }
}

/// Opens the judge behind an endpoint, if the filter names one: it judges what has been drawn, beside the drawing.
pub fn open_remote(
    filter: &JudgeFilter,
    endpoints: &[EndpointSpec],
    llm: Option<&LlmContext>,
) -> Result<Option<LlmJudge>, JudgeError> {
    match &filter.kind {
        JudgeKind::Clip { .. } => Ok(None),
        JudgeKind::Endpoint { endpoint: name, retries, image_side } => {
            let endpoint = endpoints.iter().find(|endpoint| endpoint.name == *name);
            let endpoint = endpoint.ok_or_else(|| JudgeError::NoEndpoint { name: name.clone() })?;
            let chat = Chat::open(endpoint, llm)?;
            Ok(Some(LlmJudge { chat, retries: *retries, image_side: *image_side, min: filter.min }))
        }
    }
}

/// Notes a score in the pair, and what it is made of in its provenance.
fn note(pair: &mut Pair, score: f64, details: Value) {
    pair.scores.insert("judge".to_owned(), (score * 1e6).round() / 1e6);
    note_details(pair, details);
}

/// Notes in the pair's provenance what came of judging it.
fn note_details(pair: &mut Pair, details: Value) {
    if let Value::Object(fields) = &mut pair.provenance {
        fields.insert("judge".to_owned(), details);
    }
}

#[cfg(test)]
mod tests;
