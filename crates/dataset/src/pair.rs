//! What curation makes and training takes.

use crescendo_core::rejection::Rejection;
use image::RgbImage;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A prompt, the picture that it describes, and pictures of the subjects in it.
#[derive(Clone, Debug)]
pub struct Pair {
    pub target: RgbImage,
    /// In the order of the model's references; none for plain text-to-image.
    pub references: Vec<RgbImage>,
    /// True of `target`.
    pub prompt: String,
    /// What each reference shows, in their order.
    pub reference_words: Vec<String>,
    /// By name of the filter: `similarity`, `judge`, `score`.
    pub scores: BTreeMap<String, f64>,
    /// Enough to make the pair again: seed, unit, candidate, source ids.
    pub provenance: Value,
}

impl Pair {
    /// What is said of it beside its pictures.
    pub fn facts(&self) -> Facts {
        Facts {
            prompt: self.prompt.clone(),
            reference_words: self.reference_words.clone(),
            scores: self.scores.clone(),
            provenance: self.provenance.clone(),
        }
    }

    /// Notes why the candidate was turned down.
    pub fn note_rejection(&mut self, reason: Rejection) {
        match &mut self.provenance {
            Value::Object(fields) => {
                fields.insert(REJECTED.to_owned(), json!(reason.name()));
            }
            other => *other = json!({ REJECTED: reason.name() }),
        }
    }
}

/// What is said of a [`Pair`] beside its pictures; its fields are those of `k.json` in a shard.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Facts {
    pub prompt: String,
    #[serde(default)]
    pub reference_words: Vec<String>,
    #[serde(default)]
    pub scores: BTreeMap<String, f64>,
    #[serde(default)]
    pub provenance: Value,
}

/// Field of the provenance of a candidate that was turned down: the name of the reason.
const REJECTED: &str = "rejected";

impl Facts {
    /// Why the candidate was turned down; empty for an accepted one.
    pub fn rejected(&self) -> &str {
        self.provenance.get(REJECTED).and_then(Value::as_str).unwrap_or_default()
    }
}
