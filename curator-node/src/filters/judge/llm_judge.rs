//! The judge behind an endpoint.

use super::dialogue;
use super::scores::{Scores, parse_scores};
use super::{JudgeError, Judged};
use crate::candidates::Rejected;
use crate::images;
use crate::llm::message::Png;
use crate::llm::{Chat, EndpointError};
use crescendo_core::rejection::Rejection;
use crescendo_dataset::pair::Pair;
use image::{ImageEncoder, RgbImage};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;

/// How soon a lost lease is noticed while answers are waited for.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Pairs that are all refused before it is held against the endpoint and not against them.
const TELLING: usize = 8;

/// A vision-language model that is asked in three turns.
#[derive(Debug)]
pub struct LlmJudge {
    pub(super) chat: Chat,
    pub(super) retries: u32,
    pub(super) image_side: u32,
}

/// What came of asking about one pair.
type Outcome = Result<Vec<Scores>, Rejection>;

/// What is asked about one pair: the target, and each reference with its words.
struct Question {
    target: Png,
    caption: String,
    references: Vec<(Png, String)>,
}

impl LlmJudge {
    /// Scores pairs, in their order. Called from the curation thread, which is none of the runtime's: the thread
    /// waits, as it does for any other work on a unit, while the runtime has as many conversations under way as the
    /// endpoint's `concurrency` allows. So a unit stays one piece of work with one result, and the networks stay on
    /// their thread.
    pub fn judge(
        &self,
        pairs: Vec<Pair>,
        min: f64,
        abandoned: &AtomicBool,
    ) -> Result<Vec<Judged>, JudgeError> {
        let questions: Vec<Question> =
            pairs.iter().map(|pair| self.question(pair)).collect::<Result<_, JudgeError>>()?;
        let asked = self.chat.handle().block_on(async {
            tokio::select! {
                outcomes = self.ask_all(questions) => outcomes,
                () = given_up(abandoned) => Err(JudgeError::Abandoned),
            }
        })?;
        Ok(pairs.into_iter().zip(asked).map(|(pair, outcome)| self.verdict(pair, outcome, min)).collect())
    }

    fn question(&self, pair: &Pair) -> Result<Question, JudgeError> {
        let references = pair.references.iter().enumerate().map(|(n, reference)| {
            // Where a reference has no words of its own, it is what the prompt is about.
            let words = pair.reference_words.get(n).unwrap_or(&pair.prompt).clone();
            Ok((self.png(reference)?, words))
        });
        let references = references.collect::<Result<_, JudgeError>>()?;
        Ok(Question { target: self.png(&pair.target)?, caption: pair.prompt.clone(), references })
    }

    /// A picture as it is sent: no larger than it may be, and always the same bytes.
    fn png(&self, picture: &RgbImage) -> Result<Png, JudgeError> {
        let (width, height) = fitted(picture.width(), picture.height(), self.image_side);
        let resized = images::resized(picture, width, height);
        let mut bytes = Vec::new();
        image::codecs::png::PngEncoder::new(&mut bytes)
            .write_image(resized.as_raw(), width, height, image::ExtendedColorType::Rgb8)
            .map_err(|e| JudgeError::Picture { reason: e.to_string() })?;
        Ok(Png { bytes: bytes.into(), pixels: u64::from(width) * u64::from(height) })
    }

    async fn ask_all(&self, questions: Vec<Question>) -> Result<Vec<Outcome>, JudgeError> {
        let count = questions.len();
        let mut under_way: JoinSet<(usize, Result<Outcome, EndpointError>)> = JoinSet::new();
        // One task a pair; the endpoint lets as many of them on as it may. Dropping the set ends them all.
        for (number, question) in questions.into_iter().enumerate() {
            let (chat, retries) = (self.chat.clone(), self.retries);
            under_way.spawn(async move { (number, ask(&chat, question, retries).await) });
        }
        let mut outcomes: Vec<Outcome> = (0..count).map(|_| Err(Rejection::JudgeRefused)).collect();
        let mut refused = 0;
        let mut last_refusal = String::new();
        while let Some(ended) = under_way.join_next().await {
            let (number, outcome) = ended.map_err(|e| JudgeError::Task { reason: e.to_string() })?;
            let outcome = match outcome {
                Ok(outcome) => outcome,
                Err(EndpointError::Refused { reason, .. }) => {
                    refused += 1;
                    last_refusal = reason;
                    Err(Rejection::JudgeRefused)
                }
                Err(error) => return Err(error.into()),
            };
            if let Some(place) = outcomes.get_mut(number) {
                *place = outcome;
            }
        }
        if refused == count && count >= TELLING {
            let reason = format!("it refused {count} pairs in a row, at last: {last_refusal}");
            return Err(EndpointError::Denied { name: self.chat.spec().name.clone(), reason }.into());
        }
        Ok(outcomes)
    }

    fn verdict(&self, mut pair: Pair, outcome: Outcome, min: f64) -> Judged {
        let scores = match outcome {
            Ok(scores) => scores,
            Err(reason) => return Judged { score: None, outcome: Err(Rejected::of(reason, pair)) },
        };
        // A pair is as good as its worst reference.
        let Some(score) = scores.iter().map(Scores::mean).min_by(f64::total_cmp) else {
            return Judged { score: None, outcome: Ok(pair) };
        };
        let details: Vec<Value> =
            scores.iter().map(|scores| json!({ "parts": scores.parts(), "score": scores.mean() })).collect();
        let spec = self.chat.spec();
        super::note(
            &mut pair,
            score,
            json!({ "kind": "endpoint", "model": spec.model, "references": details }),
        );
        Judged { score: Some(score), outcome: super::verdict(pair, score, min) }
    }
}

/// Returns once the unit has been given up.
async fn given_up(abandoned: &AtomicBool) {
    while !abandoned.load(Ordering::Relaxed) {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn ask(chat: &Chat, question: Question, retries: u32) -> Result<Outcome, EndpointError> {
    let Question { target, caption, references } = question;
    let mut scores = Vec::with_capacity(references.len());
    for (reference, words) in references {
        match compare(chat, reference, target.clone(), &words, &caption, retries).await? {
            Some(of_reference) => scores.push(of_reference),
            None => return Ok(Err(Rejection::JudgeUnparseable)),
        }
    }
    Ok(Ok(scores))
}

/// The three turns. None where no answer could be read.
async fn compare(
    chat: &Chat,
    reference: Png,
    target: Png,
    words: &str,
    caption: &str,
    retries: u32,
) -> Result<Option<Scores>, EndpointError> {
    let mut conversation = dialogue::opening(reference, target, words, caption);
    let parts = chat.ask(&conversation).await?;
    dialogue::ask_differences(&mut conversation, &parts.text);
    let differences = chat.ask(&conversation).await?;
    dialogue::ask_scores(&mut conversation, &differences.text);
    for _ in 0..=retries {
        let answer = chat.ask(&conversation).await?;
        match parse_scores(&answer.text) {
            Ok(scores) => return Ok(Some(scores)),
            // What was wrong is said, so the question is another one, whose answer is not the one written down.
            Err(error) => dialogue::ask_again(&mut conversation, &answer.text, &error),
        }
    }
    Ok(None)
}

/// Width and height with the longer side at most `side`, in the same shape.
fn fitted(width: u32, height: u32, side: u32) -> (u32, u32) {
    let longer = width.max(height).max(1);
    if longer <= side {
        return (width.max(1), height.max(1));
    }
    let scaled = |length: u32| {
        let scaled = (u64::from(length) * u64::from(side) + u64::from(longer) / 2) / u64::from(longer);
        u32::try_from(scaled).unwrap_or(side).clamp(1, side)
    };
    (scaled(width), scaled(height))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_keep_their_shape() {
        assert_eq!(fitted(1024, 768, 512), (512, 384));
        assert_eq!(fitted(32, 32, 512), (32, 32));
        assert_eq!(fitted(9000, 1, 512), (512, 1));
        assert_eq!(fitted(811, 1024, 768), (608, 768));
    }
}
