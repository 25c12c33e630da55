//! An answer: read strictly, and what it cost.

use super::usage::{Usage, text_tokens};
use serde::Deserialize;
use serde_json::Value;

/// What a server said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Answer {
        text: String,
        /// As the server claims; absent where it claims nothing that is a number.
        usage: Option<Usage>,
    },
    /// The model, or a filter in front of it, will not answer this.
    Refusal { reason: String },
}

#[derive(Deserialize)]
struct Body {
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Value,
}

#[derive(Deserialize)]
struct Choice {
    message: Said,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Said {
    #[serde(default)]
    content: Option<String>,
    #[serde(default)]
    refusal: Option<String>,
}

/// Reads the body of an answer.
pub fn read(body: &[u8]) -> Result<Reply, String> {
    let body: Body = serde_json::from_slice(body).map_err(|e| format!("its body is not an answer: {e}"))?;
    let Some(choice) = body.choices.into_iter().next() else {
        return Err("its body has no choice".to_owned());
    };
    if let Some(reason) = choice.message.refusal.filter(|reason| !reason.is_empty()) {
        return Ok(Reply::Refusal { reason: excerpt(&reason) });
    }
    if choice.finish_reason.as_deref() == Some("content_filter") {
        return Ok(Reply::Refusal { reason: "a content filter ended the answer".to_owned() });
    }
    let text = choice.message.content.unwrap_or_default();
    if text.trim().is_empty() {
        return Err("its answer is empty".to_owned());
    }
    let count = |name: &str| body.usage.get(name).and_then(Value::as_u64);
    let usage = match (count("prompt_tokens"), count("completion_tokens")) {
        (Some(input), Some(output)) => Some(Usage { input, output }),
        (None, _) | (_, None) => None,
    };
    Ok(Reply::Answer { text, usage })
}

/// How far a claim may be from our own estimate, as a factor.
const CLAIM_FACTOR: u64 = 10;

/// What is put on the bill: what the server claims where that can be true, else our estimate. Neither a claim of
/// nothing, which would never reach the spending limit, nor one of billions, which would end the work at once, is
/// believed.
pub fn plausible(claimed: Option<Usage>, expected: Usage, max_tokens: u32, text: &str) -> Usage {
    let answered = text_tokens(text).max(1);
    let own = Usage { input: expected.input, output: answered.min(u64::from(max_tokens)) };
    let Some(claimed) = claimed else { return own };
    let near =
        |claim: u64, own: u64| claim >= own / CLAIM_FACTOR && claim <= own.saturating_mul(CLAIM_FACTOR);
    let input = if claimed.input > 0 && near(claimed.input, own.input) { claimed.input } else { own.input };
    // Thinking that is not shown counts as output too, so the upper bound is what was allowed.
    let fits = claimed.output >= answered / CLAIM_FACTOR && claimed.output <= u64::from(max_tokens);
    let output = if claimed.output > 0 && fits { claimed.output } else { own.output };
    Usage { input, output }
}

/// The inside of a text that is one code fence (```` ```json ````) and nothing else; the trimmed text where it is not.
pub fn without_fence(text: &str) -> &str {
    let text = text.trim();
    let inside = text.strip_prefix("```").and_then(|rest| rest.strip_suffix("```"));
    let Some(inside) = inside else { return text };
    match inside.split_once('\n') {
        Some((language, rest)) if language.trim().chars().all(|c| c.is_ascii_alphanumeric()) => rest.trim(),
        Some(_) | None => text,
    }
}

/// The beginning of a text from outside, fit for a log line.
pub fn excerpt(text: &str) -> String {
    let clean: String = text.chars().map(|c| if crate::phrase::is_hidden(c) { ' ' } else { c }).collect();
    let clean = clean.split_whitespace().collect::<Vec<_>>().join(" ");
    clean.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn answers_and_refusals_are_told_apart() {
        let read = |text: &str| read(text.as_bytes());
        let answer = r#"{"choices":[{"message":{"role":"assistant","content":"yes"},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":2,"x":{}}}"#;
        let usage = Some(Usage { input: 9, output: 2 });
        assert_eq!(read(answer), Ok(Reply::Answer { text: "yes".into(), usage }));
        for lie in [r#""usage":{"prompt_tokens":-1,"completion_tokens":2}"#, r#""usage":"free""#, r#""x":0"#]
        {
            let answer = format!(r#"{{"choices":[{{"message":{{"content":"yes"}}}}],{lie}}}"#);
            assert_eq!(read(&answer), Ok(Reply::Answer { text: "yes".into(), usage: None }), "{lie}");
        }
        let refusal = r#"{"choices":[{"message":{"content":null,"refusal":"I\u202e cannot"}}]}"#;
        assert_eq!(read(refusal), Ok(Reply::Refusal { reason: "I cannot".into() }));
        let filtered = r#"{"choices":[{"message":{"content":""},"finish_reason":"content_filter"}]}"#;
        assert!(matches!(read(filtered), Ok(Reply::Refusal { .. })));
        for broken in [
            "",
            "{",
            &answer[..40],
            r#"{"choices":[]}"#,
            r#"{"choices":[{"message":{"content":" "}}]}"#,
            r#"{"choices":[{"message":{"content":["x"]}}]}"#,
        ] {
            assert!(read(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn claims_that_cannot_be_true_are_not_believed() {
        let expected = Usage { input: 1000, output: 500 };
        let text = "x".repeat(300);
        let bill = |input, output| plausible(Some(Usage { input, output }), expected, 500, &text);
        assert_eq!(bill(700, 80), Usage { input: 700, output: 80 });
        assert_eq!(bill(0, 0), Usage { input: 1000, output: 100 });
        assert_eq!(bill(u64::MAX, u64::MAX), Usage { input: 1000, output: 100 });
        assert_eq!(bill(700, 501), Usage { input: 700, output: 100 });
        // Thinking that is not shown.
        assert_eq!(bill(700, 500), Usage { input: 700, output: 500 });
        assert_eq!(plausible(None, expected, 500, &text), Usage { input: 1000, output: 100 });
    }

    #[test]
    fn one_fence_is_taken_off() {
        assert_eq!(without_fence(" {} "), "{}");
        assert_eq!(without_fence("```json\n{}\n```"), "{}");
        assert_eq!(without_fence("```\n{}\n```\n"), "{}");
        assert_eq!(without_fence("```{}```"), "```{}```");
        assert_eq!(without_fence("so: ```json\n{}\n```"), "so: ```json\n{}\n```");
        assert_eq!(without_fence("``````"), "``````");
    }

    proptest! {
        #[test]
        fn any_body_is_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes);
        }

        #[test]
        fn a_bill_is_never_nothing_and_never_absurd(input: u64, output: u64, own in 1..100_000u64, max in 16..32_768u32) {
            let expected = Usage { input: own, output: u64::from(max) };
            let bill = plausible(Some(Usage { input, output }), expected, max, "an answer");
            prop_assert!(bill.input >= 1 && bill.input <= own * CLAIM_FACTOR);
            prop_assert!((1..=u64::from(max)).contains(&bill.output));
        }
    }
}
