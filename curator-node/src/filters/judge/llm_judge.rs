//! The judge behind an endpoint.

use super::dialogue;
use super::scores::{Scores, parse_scores};
use super::{JudgeError, Judged};
use crate::candidates::Rejected;
use crate::counts::Counts;
use crate::images;
use crate::llm::message::{Message, Png};
use crate::llm::reply::excerpt;
use crate::llm::{Answer, Chat, EndpointError, Memory};
use crescendo_core::rejection::Rejection;
use crescendo_dataset::pair::Pair;
use image::{ImageEncoder, RgbImage};
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use tokio::task::JoinSet;

/// Pairs of a unit that are asked about at once: more than an endpoint answers, so that it never waits for a picture to be
/// encoded, and few enough to hold.
const JUDGED_AT_ONCE: usize = 32;
/// Pairs that are all refused before it is held against the endpoint and not against them.
const TELLING: usize = 8;

/// A vision-language model that is asked in three turns. Clones share the endpoint's limits.
#[derive(Clone, Debug)]
pub struct LlmJudge {
    pub(super) chat: Chat,
    pub(super) retries: u32,
    pub(super) image_side: u32,
    /// 0 to 4; what scores less is rejected.
    pub(super) min: f64,
}

/// What came of asking about one pair.
type Outcome = Result<Vec<Scores>, NoScores>;

/// Why a pair has no scores.
#[derive(Debug)]
struct NoScores {
    reason: Rejection,
    /// What was wrong with the last answer, or the words of the refusal.
    why: String,
    /// The beginning of the last answer.
    said: String,
    /// It was one too many: nothing else should be asked.
    end: Option<EndpointError>,
}

impl NoScores {
    fn of(reason: Rejection, why: String) -> NoScores {
        NoScores { reason, why, said: String::new(), end: None }
    }
}

/// What an endpoint has said so far of a unit's pairs, by their places. It outlives the endpoint's outages: who has an
/// answer is not asked about again.
#[derive(Debug, Default)]
pub struct Answers(BTreeMap<usize, Outcome>);

/// What is asked about one pair: the target, and each reference with its words.
struct Question {
    target: Png,
    caption: String,
    references: Vec<(Png, String)>,
}

impl LlmJudge {
    /// Asks about every pair that `answers` has nothing of, `JUDGED_AT_ONCE` at a time; of these as many are under way
    /// as the endpoint's `concurrency` allows. `counts` hears of each pair that has been judged. Dropping this ends all
    /// conversations; after an error what was answered stays in `answers`.
    pub async fn ask_about(
        &self,
        pairs: &Arc<Vec<Pair>>,
        answers: &mut Answers,
        counts: &Counts,
    ) -> Result<(), JudgeError> {
        let mut open: VecDeque<usize> = (0..pairs.len()).filter(|n| !answers.0.contains_key(n)).collect();
        let asked = open.len();
        let mut under_way: JoinSet<(usize, Result<Outcome, JudgeError>)> = JoinSet::new();
        let mut refused_in_a_row = 0;
        loop {
            while under_way.len() < JUDGED_AT_ONCE
                && let Some(number) = open.pop_front()
            {
                let (judge, pairs) = (self.clone(), pairs.clone());
                under_way.spawn(async move { (number, judge.ask_about_one(pairs, number).await) });
            }
            let Some(ended) = under_way.join_next().await else { return Ok(()) };
            let (number, outcome) = ended.map_err(|e| JudgeError::Task { reason: e.to_string() })?;
            let outcome = match outcome {
                Ok(outcome) => {
                    refused_in_a_row = 0;
                    outcome
                }
                Err(JudgeError::Endpoint(EndpointError::Refused { reason, .. })) => {
                    refused_in_a_row += 1;
                    if refused_in_a_row >= JUDGED_AT_ONCE.min(asked).max(TELLING) {
                        let name = self.chat.spec().name.clone();
                        let reason =
                            format!("it refused {refused_in_a_row} pairs in a row, at last: {reason}");
                        return Err(EndpointError::Denied { name, reason, may_pass: false }.into());
                    }
                    self.chat.was_refused(&reason)?;
                    Err(NoScores::of(Rejection::JudgeRefused, reason))
                }
                Err(JudgeError::Endpoint(EndpointError::Unreadable { reason, .. })) => {
                    Err(NoScores::of(Rejection::JudgeUnparseable, reason))
                }
                Err(error) => return Err(error),
            };
            let mut outcome = outcome;
            let end = outcome.as_mut().err().and_then(|no| no.end.take());
            answers.0.insert(number, outcome);
            counts.judged(1);
            if let Some(end) = end {
                return Err(end.into());
            }
        }
    }

    /// The first `most` pairs that have been asked about and have no scores, for people to see.
    pub fn without_scores(&self, pairs: &[Pair], answers: &Answers, most: usize) -> Vec<Rejected> {
        let found = answers.0.iter().filter_map(|(number, outcome)| {
            let (pair, no) = (pairs.get(*number)?, outcome.as_ref().err()?);
            Some(self.turned_down(pair.clone(), no))
        });
        found.take(most).collect()
    }

    /// What comes of pairs that have all been asked about, in their order: each with its score noted, or why it is
    /// rejected. A pair without references passes.
    pub fn judged(&self, pairs: Vec<Pair>, mut answers: Answers) -> Result<Vec<Judged>, JudgeError> {
        let verdict = |(number, pair)| {
            let outcome = answers.0.remove(&number);
            let outcome =
                outcome.ok_or_else(|| JudgeError::Task { reason: format!("pair {number} has no answer") })?;
            Ok(self.verdict(pair, outcome))
        };
        pairs.into_iter().enumerate().map(verdict).collect()
    }

    async fn ask_about_one(&self, pairs: Arc<Vec<Pair>>, number: usize) -> Result<Outcome, JudgeError> {
        let judge = self.clone();
        // Pictures are resized and encoded off the async threads.
        let asking = tokio::task::spawn_blocking(move || pairs.get(number).map(|pair| judge.question(pair)));
        let question = asking.await.map_err(|e| JudgeError::Task { reason: e.to_string() })?;
        let question =
            question.ok_or_else(|| JudgeError::Task { reason: format!("there is no pair {number}") })?;
        Ok(self.ask(question?).await?)
    }

    async fn ask(&self, question: Question) -> Result<Outcome, EndpointError> {
        let Question { target, caption, references } = question;
        let mut scores = Vec::with_capacity(references.len());
        for (reference, words) in references {
            let opening = dialogue::opening(reference, target.clone(), &words, &caption);
            match self.compare(opening).await? {
                Ok(of_reference) => scores.push(of_reference),
                Err(no) => return Ok(Err(no)),
            }
        }
        Ok(Ok(scores))
    }

    /// The three turns after `opening`. What is written down of them and is not understood is asked for once more.
    async fn compare(&self, opening: Vec<Message>) -> Result<Result<Scores, NoScores>, EndpointError> {
        let mut answers = Vec::new();
        let mut outcome = self.converse(opening.clone(), Memory::Used, &mut answers).await?;
        let may_go_on = outcome.as_ref().is_err_and(|no| no.end.is_none());
        if may_go_on && answers.iter().any(|answer| answer.recorded) {
            self.chat.forget(&answers);
            answers.clear();
            outcome = self.converse(opening, Memory::PassedOver, &mut answers).await?;
        }
        match outcome {
            Ok(scores) => {
                let standing = self.chat.keep(&answers).await?;
                Ok(Ok(standing.and_then(|text| parse_scores(&text).ok()).unwrap_or(scores)))
            }
            Err(no) => {
                self.chat.forget(&answers);
                Ok(Err(no))
            }
        }
    }

    async fn converse(
        &self,
        mut conversation: Vec<Message>,
        memory: Memory,
        answers: &mut Vec<Answer>,
    ) -> Result<Result<Scores, NoScores>, EndpointError> {
        let chat = &self.chat;
        for next in [dialogue::ask_differences, dialogue::ask_scores] {
            let answer = chat.ask(&conversation, memory).await?;
            next(&mut conversation, &answer.text);
            answers.push(answer);
        }
        let mut no = NoScores::of(Rejection::JudgeUnparseable, String::new());
        for _ in 0..=self.retries {
            let answer = chat.ask(&conversation, memory).await?;
            let parsed = parse_scores(&answer.text);
            let (recorded, why) = (answer.recorded, parsed.as_ref().err().map(|error| answer.why(error)));
            let (Err(error), Some(why)) = (&parsed, why) else {
                answers.push(answer);
                return Ok(parsed.map_err(|_| no));
            };
            // What was wrong is said, so the question is another one, whose answer is not the same again.
            dialogue::ask_again(&mut conversation, &answer.text, error);
            no.said = excerpt(&answer.text);
            if !recorded {
                no.end = chat.not_understood(&answer, &why).err();
            }
            no.why = why;
            answers.push(answer);
            if no.end.is_some() {
                break;
            }
        }
        Ok(Err(no))
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

    fn verdict(&self, mut pair: Pair, outcome: Outcome) -> Judged {
        let scores = match outcome {
            Ok(scores) => scores,
            Err(no) => return Judged { score: None, outcome: Err(self.turned_down(pair, &no)) },
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
        Judged { score: Some(score), outcome: super::verdict(pair, score, self.min) }
    }

    /// A pair without scores, with what was answered for a person to see.
    fn turned_down(&self, mut pair: Pair, no: &NoScores) -> Rejected {
        let NoScores { reason, why, said, end: _ } = no;
        let model = &self.chat.spec().model;
        super::note_details(
            &mut pair,
            json!({ "kind": "endpoint", "model": model, "why": why, "said": said }),
        );
        Rejected::of(*reason, pair)
    }
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
