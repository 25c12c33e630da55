//! The local judge: cosines of CLIP features. The weaker of the two, for clusters without an endpoint.
//!
//! It has two parts: `likeness`, the cosine of reference and target, and `agreement`, the cosine of target and
//! prompt. Each is mapped to 0 to 4 along a line between two limits. Whole pictures are compared, so a background
//! that is alike counts, and a logo that is not does not: it cannot tell one subject from another of the same kind as
//! a model can that looks at parts. Its limits are ours; none are published.

use super::{Judged, note};
use crescendo_dataset::pair::Pair;
use crescendo_model::clip::{Clip, ClipConfig};
use crescendo_model::pictures::processor::ImageProcessor;
use crescendo_model::tch::{Device, Kind, Tensor};
use crescendo_model::tokenizer::{PromptTokenizer, TokenRule};
use crescendo_model::{ModelError, Result};
use image::RgbImage;
use serde_json::json;
use std::path::Path;

/// Pictures described in one forward pass.
const BATCH: usize = 32;
/// The best score of a part.
const BEST: f64 = 4.0;
/// Most characters of a prompt that is described: far more than the tokens that fit.
const MAX_PROMPT_CHARS: usize = 2000;

/// Both towers with the limits of a stage.
#[derive(Debug)]
pub struct ClipJudge {
    clip: Clip,
    tokenizer: PromptTokenizer,
    processor: ImageProcessor,
    limits: ClipLimits,
}

/// What cosines are mapped between, and the least score that passes.
#[derive(Clone, Copy, Debug)]
pub struct ClipLimits {
    /// 0 to 4.
    pub min: f64,
    /// Low and high cosine of reference and target.
    pub likeness: (f64, f64),
    /// Low and high cosine of target and prompt.
    pub agreement: (f64, f64),
}

impl ClipJudge {
    /// Loads the towers, onto `device`, and their tokenizer.
    pub fn open(weights: &Path, tokenizer: &Path, limits: ClipLimits, device: Device) -> Result<ClipJudge> {
        let clip = Clip::load(&ClipConfig::beside(weights)?, weights, Kind::Float, device)?;
        let tokens = clip.config().text_config.max_position_embeddings;
        let max_length = usize::try_from(tokens).unwrap_or(0).clamp(2, 77);
        let tokenizer = PromptTokenizer::load(tokenizer, &TokenRule { max_length, ..TokenRule::clip() })?;
        ClipJudge::of(clip, tokenizer, limits)
    }

    fn of(clip: Clip, tokenizer: PromptTokenizer, limits: ClipLimits) -> Result<ClipJudge> {
        let vocabulary = clip.config().text_config.vocab_size;
        if tokenizer.largest_id() >= vocabulary {
            let reason = format!("it has ids up to {}, the tower {vocabulary}", tokenizer.largest_id());
            return Err(ModelError::Config { field: "tokenizer", reason });
        }
        let side = u32::try_from(clip.config().vision_config.image_size).unwrap_or(0);
        let processor = ImageProcessor::clip(side);
        processor.validate()?;
        Ok(ClipJudge { clip, tokenizer, processor, limits })
    }

    /// Scores pairs, in their order; a pair is as good as its worst reference.
    pub fn judge(&self, pairs: Vec<Pair>) -> Result<Vec<Judged>> {
        let ClipLimits { min, likeness: likeness_limits, agreement: agreement_limits } = self.limits;
        let pictures: Vec<&RgbImage> =
            pairs.iter().flat_map(|pair| std::iter::once(&pair.target).chain(&pair.references)).collect();
        let seen = self.pictures(&pictures)?;
        let prompts: Vec<String> =
            pairs.iter().map(|pair| pair.prompt.chars().take(MAX_PROMPT_CHARS).collect()).collect();
        let said = self.prompts(&prompts)?;
        let mut next = 0;
        let mut judged = Vec::with_capacity(pairs.len());
        for (number, mut pair) in pairs.into_iter().enumerate() {
            let of_pair = seen.get(next..=next + pair.references.len()).unwrap_or_default();
            next += 1 + pair.references.len();
            let (Some((target, references)), Some(words)) = (of_pair.split_first(), said.get(number)) else {
                return Err(unexpected(
                    "pictures",
                    "the network described fewer than it was given".to_owned(),
                ));
            };
            // What is not a number is like nothing.
            let likenesses =
                references.iter().map(|r| dot(target, r)).map(|c| if c.is_nan() { -1.0 } else { c });
            let Some(likeness) = likenesses.min_by(f64::total_cmp) else {
                judged.push(Judged { score: None, outcome: Ok(pair) });
                continue;
            };
            let agreement = dot(target, words);
            let parts = [mapped(likeness, likeness_limits), mapped(agreement, agreement_limits)];
            let score = (parts[0] + parts[1]) / 2.0;
            let details = json!({
                "kind": "clip", "likeness": likeness, "agreement": agreement,
                "parts": [{ "part": "likeness", "score": parts[0] }, { "part": "agreement", "score": parts[1] }],
            });
            note(&mut pair, score, details);
            judged.push(Judged { score: Some(score), outcome: super::verdict(pair, score, min) });
        }
        Ok(judged)
    }

    fn pictures(&self, pictures: &[&RgbImage]) -> Result<Vec<Vec<f32>>> {
        let mut rows = Vec::with_capacity(pictures.len());
        for chunk in pictures.chunks(BATCH) {
            rows.extend(rows_of(&self.clip.image_embeds(&self.processor.process(chunk)?)?)?);
        }
        Ok(rows)
    }

    fn prompts(&self, prompts: &[String]) -> Result<Vec<Vec<f32>>> {
        let mut rows = Vec::with_capacity(prompts.len());
        for chunk in prompts.chunks(BATCH) {
            let texts: Vec<&str> = chunk.iter().map(String::as_str).collect();
            rows.extend(rows_of(&self.clip.text_embeds(&self.tokenizer.encode(&texts)?)?)?);
        }
        Ok(rows)
    }
}

/// 0 at the low limit and below, 4 at the high one and above, a line between; 0 for what is no number.
pub fn mapped(cosine: f64, (low, high): (f64, f64)) -> f64 {
    let share = (cosine - low) / (high - low);
    if share.is_nan() { 0.0 } else { BEST * share.clamp(0.0, 1.0) }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

fn unexpected(name: &str, reason: String) -> ModelError {
    ModelError::Input { name: name.to_owned(), reason }
}

/// The rows of a float32 matrix.
fn rows_of(matrix: &Tensor) -> Result<Vec<Vec<f32>>> {
    let matrix = matrix.f_to_device(Device::Cpu)?.f_contiguous()?;
    let [rows, columns] = *matrix.size().as_slice() else {
        return Err(unexpected("features", format!("shape {:?} is no matrix", matrix.size())));
    };
    let mut flat = vec![0f32; (rows * columns) as usize];
    let count = flat.len();
    matrix.f_copy_data(&mut flat, count)?;
    Ok(flat.chunks_exact(columns.max(1) as usize).map(<[f32]>::to_vec).collect())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crescendo_core::rejection::Rejection;
    use crescendo_model::clip::{ClipTextConfig, ClipVisionConfig};
    use image::Rgb;
    use serde_json::{Value, json};
    use std::collections::BTreeMap;

    /// A tokenizer of four words and CLIP's special tokens.
    fn tokenizer(path: &Path) {
        let special = |token: &str, id: u32| {
            json!({
                "id": id, "content": token, "special": true, "normalized": false, "single_word": false, "lstrip": false, "rstrip": false,
            })
        };
        let file = json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [special("<|startoftext|>", 4), special("<|endoftext|>", 5)],
            "pre_tokenizer": { "type": "Whitespace" },
            "model": {
                "type": "WordLevel", "unk_token": "a",
                "vocab": { "a": 0, "red": 1, "cup": 2, "fox": 3, "<|startoftext|>": 4, "<|endoftext|>": 5 },
            },
        });
        std::fs::write(path, file.to_string()).expect("write");
    }

    fn config() -> ClipConfig {
        ClipConfig {
            text_config: ClipTextConfig {
                vocab_size: 6,
                hidden_size: 16,
                intermediate_size: 24,
                num_hidden_layers: 1,
                num_attention_heads: 2,
                max_position_embeddings: 8,
                eos_token_id: 5,
                ..ClipTextConfig::default()
            },
            vision_config: ClipVisionConfig {
                hidden_size: 12,
                intermediate_size: 20,
                num_hidden_layers: 1,
                num_attention_heads: 2,
                image_size: 16,
                patch_size: 4,
                ..ClipVisionConfig::default()
            },
            projection_dim: 6,
        }
    }

    fn judge(min: f64, likeness: (f64, f64), agreement: (f64, f64)) -> ClipJudge {
        let folder = tempfile::tempdir().expect("make a folder");
        let path = folder.path().join("tokenizer.json");
        tokenizer(&path);
        let rule = TokenRule { max_length: 8, ..TokenRule::clip() };
        let tokenizer = PromptTokenizer::load(&path, &rule).expect("load");
        let clip = Clip::init(&config(), 5, Kind::Float, Device::Cpu).expect("fresh weights");
        ClipJudge::of(clip, tokenizer, ClipLimits { min, likeness, agreement }).expect("they fit")
    }

    fn picture(seed: u32, width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| {
            Rgb([(x * 7 + seed * 90) as u8, (y * 5 + seed * 60) as u8, (seed * 40) as u8])
        })
    }

    fn pair(target: RgbImage, references: Vec<RgbImage>) -> Pair {
        Pair {
            target,
            references,
            prompt: "a red cup <|endoftext|>\u{202e} fox".to_owned(),
            reference_words: Vec::new(),
            scores: BTreeMap::new(),
            provenance: json!({ "unit": 1 }),
        }
    }

    #[test]
    fn cosines_map_along_a_line() {
        assert_eq!(mapped(0.6, (0.6, 0.9)), 0.0);
        assert_eq!(mapped(0.75, (0.5, 1.0)), 2.0);
        assert_eq!(mapped(0.95, (0.6, 0.9)), 4.0);
        assert_eq!(mapped(-1.0, (0.6, 0.9)), 0.0);
        assert_eq!(mapped(f64::NAN, (0.6, 0.9)), 0.0);
        assert_eq!(mapped(0.5, (0.5, 0.5)), 0.0);
    }

    #[test]
    fn a_copy_is_alike_and_the_worst_reference_counts() {
        let (a, b) = (picture(1, 32, 20), picture(3, 20, 50));
        // Agreement is 4 whatever is said, so that the score shows the likeness.
        let judging = |min| judge(min, (-1.0, 1.0), (-1.1, -1.0));
        let pairs = vec![
            pair(a.clone(), vec![a.clone()]),
            pair(a.clone(), vec![a.clone(), b.clone()]),
            pair(a.clone(), vec![]),
            pair(a.clone(), vec![b]),
        ];
        let scores = |judged: &[Judged]| judged.iter().map(|judged| judged.score).collect::<Vec<_>>();
        let other = scores(&judging(0.0).judge(pairs.clone()).expect("judge"))[3].expect("compared");
        assert!(other < 4.0);
        let judged = judging((4.0 + other) / 2.0).judge(pairs).expect("judge");
        assert!((judged[0].score.expect("compared") - 4.0).abs() < 1e-5);
        let kept = judged[0].outcome.as_ref().expect("a copy is alike");
        assert!((kept.scores["judge"] - 4.0).abs() < 1e-4);
        let kind = |pair: &Pair| {
            pair.provenance
                .get("judge")
                .and_then(|j| j.get("kind"))
                .and_then(Value::as_str)
                .map(str::to_owned)
        };
        assert_eq!(kind(kept).as_deref(), Some("clip"));
        // The same to the last bits: the place in a batch may change those.
        let [both, alone] = [1, 3].map(|n: usize| judged[n].score.expect("compared"));
        assert!((both - alone).abs() < 1e-6, "{both} and {alone}");
        assert_eq!(
            judged[3].outcome.as_ref().err().map(|rejected| rejected.reason),
            Some(Rejection::JudgeLow)
        );
        assert!(judged[2].score.is_none() && judged[2].outcome.is_ok());
        assert!(judging(0.0).judge(Vec::new()).expect("nothing to do").is_empty());
    }

    #[test]
    fn a_tokenizer_of_another_network_is_refused() {
        let folder = tempfile::tempdir().expect("make a folder");
        let path = folder.path().join("tokenizer.json");
        tokenizer(&path);
        let tokenizer = PromptTokenizer::load(&path, &TokenRule::clip()).expect("load");
        let mut small = config();
        small.text_config.vocab_size = 3;
        let clip = Clip::init(&small, 5, Kind::Float, Device::Cpu).expect("fresh weights");
        let limits = ClipLimits { min: 0.0, likeness: (0.0, 1.0), agreement: (0.0, 1.0) };
        let error = ClipJudge::of(clip, tokenizer, limits).expect_err("too many ids");
        assert!(error.to_string().contains("ids up to 5"), "{error}");
    }
}
