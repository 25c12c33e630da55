//! The judge's last answer: one JSON object in it, read strictly; what stands around it and beside it is not looked at.

use crate::llm::json_object::{ObjectError, only_object};
use crate::phrase::{is_hidden, normalised};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeSet;

/// Largest answer that is read, bytes.
pub const MAX_BYTES: usize = 16 * 1024;
/// Most parts (the released data set has 1 to 20).
pub const MAX_PARTS: usize = 20;
/// Most characters of a part's name.
pub const MAX_NAME_CHARS: usize = 80;
/// The best score of a part.
pub const BEST: u8 = 4;

/// Names that are no parts of anything: headings and sums, which careless readers of such answers have taken for parts.
const NO_PARTS: &[&str] = &[
    "answer",
    "average",
    "conclusion",
    "final",
    "final score",
    "id",
    "json",
    "mean",
    "na",
    "n a",
    "none",
    "note",
    "notes",
    "null",
    "output",
    "overall",
    "overall score",
    "part",
    "parts",
    "reason",
    "record",
    "record number",
    "result",
    "score",
    "scores",
    "sum",
    "summary",
    "total",
    "total score",
];

/// A part and how well it was kept: 0 nothing, 4 all of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartScore {
    pub part: String,
    pub score: u8,
}

/// 1 to 20 parts, each once, each 0 to 4.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scores(Vec<PartScore>);

/// Why an answer is not taken. The messages go back to the model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("the answer is longer than {MAX_BYTES} bytes")]
    Long,
    #[error(transparent)]
    Object(#[from] ObjectError),
    #[error("its \"scores\" are not a list of objects, each with a part and a score ({reason})")]
    Form { reason: String },
    #[error("it has {count} parts; 1 to {MAX_PARTS} are wanted")]
    Count { count: usize },
    #[error("the name of part {number} is empty, too long or holds characters that do not show")]
    Name { number: usize },
    #[error("part {number} is not a part of the subject")]
    NoPart { number: usize },
    #[error("part {number} is there already")]
    Twice { number: usize },
    #[error("the score of part {number} is not a whole number from 0 to {BEST}")]
    Score { number: usize },
}

#[derive(Deserialize)]
struct Answer {
    scores: Vec<Said>,
}

#[derive(Deserialize)]
struct Said {
    part: String,
    score: Value,
}

/// A whole number from 0 to 4, as models write one: `4`, `4.0`, `"4"`, `"4/4"`. Nothing is rounded, and nothing cut to fit.
fn whole(score: &Value) -> Option<u8> {
    let number = match score {
        Value::Number(number) => number.as_f64()?,
        Value::String(text) => {
            let text = text.trim();
            let of_best = text.split_once('/').map(|(score, best)| (score.trim_end(), best.trim()));
            match of_best {
                Some((score, best)) => Some(score).filter(|_| best == "4")?.parse().ok()?,
                None => text.parse().ok()?,
            }
        }
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => return None,
    };
    (0..=BEST).find(|whole| f64::from(*whole) == number)
}

/// Reads `{"scores": [{"part": "…", "score": 0 to 4}]}`, the one object of that form in the text. Further fields do no harm.
pub fn parse_scores(text: &str) -> Result<Scores, ParseError> {
    if text.len() > MAX_BYTES {
        return Err(ParseError::Long);
    }
    let text = only_object(text, "scores")?;
    let form = |reason: String| ParseError::Form { reason };
    let unread = |e: serde_json::Error| form(e.to_string().chars().take(80).collect());
    let answer: Answer = serde_json::from_str(text).map_err(unread)?;
    // The line above would also take the fields of an object as a list, in their order.
    let shape: Value = serde_json::from_str(text).map_err(unread)?;
    let listed = shape.get("scores").and_then(Value::as_array);
    if !listed.is_some_and(|scores| scores.iter().all(Value::is_object)) {
        return Err(form("a list stands for an object".to_owned()));
    }
    if !(1..=MAX_PARTS).contains(&answer.scores.len()) {
        return Err(ParseError::Count { count: answer.scores.len() });
    }
    let mut seen = BTreeSet::new();
    let mut parts = Vec::with_capacity(answer.scores.len());
    for (index, said) in answer.scores.into_iter().enumerate() {
        let number = index + 1;
        let name = said.part.trim();
        let length = name.chars().count();
        if length == 0 || length > MAX_NAME_CHARS || name.chars().any(|c| is_hidden(c) || c == '\t') {
            return Err(ParseError::Name { number });
        }
        let known_as = normalised(name);
        let heading = name.starts_with(['#', '*', '-', '{', '[', '<', '`', '|']);
        if heading || !name.chars().any(char::is_alphabetic) || NO_PARTS.contains(&known_as.as_str()) {
            return Err(ParseError::NoPart { number });
        }
        if !seen.insert(known_as) {
            return Err(ParseError::Twice { number });
        }
        let score = whole(&said.score).ok_or(ParseError::Score { number })?;
        parts.push(PartScore { part: name.to_owned(), score });
    }
    Ok(Scores(parts))
}

impl Scores {
    pub fn parts(&self) -> &[PartScore] {
        &self.0
    }

    /// The score of the pair, 0 to 4. Ours: what a model says of a sum or a mean is never looked at.
    pub fn mean(&self) -> f64 {
        let sum: u32 = self.0.iter().map(|part| u32::from(part.score)).sum();
        // There is at least one part.
        f64::from(sum) / self.0.len().max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn scores(parts: &str) -> Result<Scores, ParseError> {
        parse_scores(&format!("{{\"scores\": [{parts}]}}"))
    }

    #[test]
    fn a_clean_answer_is_read_and_its_mean_is_ours() {
        let read = parse_scores(
            "```json\n{\"scores\": [{\"part\": \"handle\", \"score\": 4}, {\"part\": \"text 'HELLO'\", \"score\": 3}]}\n```",
        );
        let read = read.expect("it is clean");
        assert_eq!(read.mean(), 3.5);
        assert_eq!(read.parts()[1], PartScore { part: "text 'HELLO'".into(), score: 3 });
        assert_eq!(scores(r#"{"part": "לוגו", "score": 0}"#).expect("any script").mean(), 0.0);
    }

    #[test]
    fn an_answer_is_read_as_models_write_it() {
        let plain = "{\"scores\": [{\"part\": \"handle\", \"score\": 4}]}";
        for text in [
            format!("Here it is:\n\n```json\n{plain}\n```\n\nAll parts match."),
            format!("perhaps {{so}}: {plain} and that is all"),
            format!("<|begin_of_box|>{plain}<|end_of_box|>"),
            "{\"scores\": [{\"part\": \"handle\", \"score\": 4, \"reason\": \"same\"}], \"final\": 2}"
                .to_owned(),
        ] {
            assert_eq!(parse_scores(&text).expect(&text).mean(), 4.0, "{text}");
        }
        for score in ["4.0", "\"4\"", "\"4/4\"", "\" 4 / 4 \"", "\"4.0\"", "4e0"] {
            let read = scores(&format!("{{\"part\": \"handle\", \"score\": {score}}}"));
            assert_eq!(read.expect(score).parts()[0].score, 4, "{score}");
        }
        assert_eq!(scores(r#"{"part": "handle", "score": "3/4"}"#).expect("a share").mean(), 3.0);
    }

    #[test]
    fn everything_else_is_refused() {
        let json = |result: Result<Scores, ParseError>| {
            matches!(result, Err(ParseError::Object(_) | ParseError::Form { .. }))
        };
        for text in [
            "",
            "4",
            "handle: 4",
            "NaN",
            "{}",
            "[]",
            "{\"scores\": {\"handle\": 4}}",
            "[[[\"handle\", 4]]]",
            "{\"scores\": [[\"handle\", 4]]}",
            "{\"scores\": [{\"part\": \"handle\", \"score\": 4}]",
            "{\"scores\": [{\"part\": \"a\", \"score\": 4}]} or {\"scores\": [{\"part\": \"a\", \"score\": 3}]}",
            "{\"scores\": [], \"scores\": []}",
            "{\"scores\": [{\"part\": \"a\", \"score\": NaN}]}",
            "{\"scores\": [{\"part\": \"a\"}]}",
        ] {
            assert!(json(parse_scores(text)), "{text}: {:?}", parse_scores(text));
        }
        assert!(json(parse_scores(&"[".repeat(10_000))));
        assert_eq!(parse_scores(&" ".repeat(MAX_BYTES + 1)), Err(ParseError::Long));
        assert_eq!(scores(""), Err(ParseError::Count { count: 0 }));
        let many: Vec<String> = (0..21).map(|n| format!("{{\"part\": \"p{n}\", \"score\": 4}}")).collect();
        assert_eq!(scores(&many.join(",")), Err(ParseError::Count { count: 21 }));
        for score in [
            "5",
            "-1",
            "3.5",
            "131184.67",
            "8.5",
            "1e99",
            "99999999999999999999",
            "null",
            "[4]",
            "true",
            "\"\"",
            "\"5\"",
            "\"4/5\"",
            "\"4/10\"",
            "\"four\"",
            "\"NaN\"",
            "\"4/4/4\"",
            "\"/4\"",
        ] {
            let read = scores(&format!("{{\"part\": \"handle\", \"score\": {score}}}"));
            assert_eq!(read, Err(ParseError::Score { number: 1 }), "{score}");
        }
        for name in [
            "Record Number",
            "ID",
            "# Output",
            "**Total**",
            "overall score",
            "12",
            "the final score",
            "- handle",
        ] {
            let read = scores(&format!("{{\"part\": \"{name}\", \"score\": 4}}"));
            assert_eq!(read, Err(ParseError::NoPart { number: 1 }), "{name}");
        }
        for name in ["", "  ", "a\\nb", "a\\u202eb", &"x".repeat(81)] {
            let read = scores(&format!("{{\"part\": \"{name}\", \"score\": 4}}"));
            assert_eq!(read, Err(ParseError::Name { number: 1 }), "{name}");
        }
        let twice = scores(r#"{"part": "Handle", "score": 4}, {"part": "the handle.", "score": 2}"#);
        assert_eq!(twice, Err(ParseError::Twice { number: 2 }));
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "\\PC{0,200}|[\\[\\]{}\",:a-s0-9.` \\n-]{0,200}") {
            let _ = parse_scores(&text);
        }

        #[test]
        fn a_spoilt_answer_is_refused_or_within_bounds(
            names in proptest::collection::btree_set("[a-z]{3,9}", 1..9),
            score in 0..=4u8,
            cuts in proptest::collection::vec((any::<proptest::sample::Index>(), any::<char>(), 0..3u8), 0..5),
        ) {
            let said: Vec<_> = names.iter().map(|part| PartScore { part: part.clone(), score }).collect();
            let mut text: Vec<char> = serde_json::json!({ "scores": said }).to_string().chars().collect();
            for (at, c, what) in cuts {
                let at = at.index(text.len().max(1));
                match what {
                    0 if at < text.len() => text[at] = c,
                    1 => text.insert(at.min(text.len()), c),
                    _ => text.truncate(at.max(1)),
                }
            }
            let text: String = text.into_iter().collect();
            if let Ok(scores) = parse_scores(&text) {
                prop_assert!((1..=MAX_PARTS).contains(&scores.parts().len()));
                prop_assert!(scores.parts().iter().all(|part| part.score <= BEST));
                prop_assert!((0.0..=4.0).contains(&scores.mean()));
            }
        }

        #[test]
        fn a_whole_answer_reads_back(names in proptest::collection::btree_set("part [a-z]{3,9}", 1..20), score in 0..=4u8) {
            let said: Vec<_> = names.iter().map(|part| PartScore { part: part.clone(), score }).collect();
            let read = parse_scores(&serde_json::json!({ "scores": said }).to_string());
            prop_assert_eq!(read, Ok(Scores(said)));
        }
    }
}
