//! An answer: what a server said, without what its model thought; and what it cost.

pub use super::excerpt::excerpt;
use super::server_error::ServerError;
use super::thinking::taken_out;
use super::usage::{Usage, text_tokens};
use serde_json::Value;

/// What a server said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Answer {
        text: String,
        /// As the server claims; absent where it claims nothing that is a number.
        usage: Option<Usage>,
        /// It stopped at the limit of its tokens.
        cut: bool,
    },
    /// The model, or a filter in front of it, will not answer this.
    Refusal { reason: String },
    /// An error in a response of status 200.
    Error(ServerError),
    /// It stopped at the limit of its tokens before it said anything; how many they were, if the server says so.
    Thought { tokens: Option<u64> },
    /// Nothing was said.
    Empty,
}

/// Reads the body of an answer. Content may be a text or a list of parts, of which those with text are joined. Thinking is left
/// out; where all was taken for thinking, though it ended by itself, the thinking is the answer.
pub fn read(body: &[u8]) -> Result<Reply, String> {
    let told = || excerpt(&String::from_utf8_lossy(body.get(..1024).unwrap_or(body)));
    let value: Value =
        serde_json::from_slice(body).map_err(|e| format!("its body is not JSON ({e}): {}", told()))?;
    let given = |value: &Value, name: &str| value.get(name).filter(|error| !error.is_null()).cloned();
    if let Some(error) = given(&value, "error") {
        return Ok(Reply::Error(ServerError::of_value(&error)));
    }
    let choice = value.pointer("/choices/0");
    let choice = choice.ok_or_else(|| format!("its body has neither an answer nor an error: {}", told()))?;
    let message = choice.get("message").unwrap_or(&Value::Null);
    if let Some(error) = given(choice, "error").or_else(|| given(message, "error")) {
        return Ok(Reply::Error(ServerError::of_value(&error)));
    }
    let finish = choice.get("finish_reason").and_then(Value::as_str).unwrap_or_default();
    let said = content(message.get("content").unwrap_or(&Value::Null))?;
    let refusal = message.get("refusal").and_then(Value::as_str).filter(|reason| !reason.is_empty());
    if let Some(reason) = refusal.or(said.refusal.as_deref()) {
        return Ok(Reply::Refusal { reason: excerpt(reason) });
    }
    if finish == "content_filter" {
        return Ok(Reply::Refusal { reason: "a content filter ended the answer".to_owned() });
    }
    let count = |name: &str| value.get("usage")?.get(name)?.as_u64();
    let usage = match (count("prompt_tokens"), count("completion_tokens")) {
        (Some(input), Some(output)) => Some(Usage { input, output }),
        (None, _) | (_, None) => None,
    };
    let cut = matches!(finish, "length" | "max_tokens" | "MAX_TOKENS" | "model_length");
    let visible = taken_out(&said.text);
    if !visible.text.trim().is_empty() {
        return Ok(Reply::Answer { text: visible.text.trim().to_owned(), usage, cut });
    }
    if cut || visible.thinks_still {
        return Ok(Reply::Thought { tokens: count("completion_tokens") });
    }
    let thought = ["reasoning_content", "reasoning"].iter().find_map(|name| message.get(*name)?.as_str());
    match thought.map(|thought| taken_out(thought).text.trim().to_owned()).filter(|text| !text.is_empty()) {
        Some(text) => Ok(Reply::Answer { text, usage, cut }),
        None => Ok(Reply::Empty),
    }
}

/// What was said, and why not more.
#[derive(Default)]
struct Said {
    text: String,
    refusal: Option<String>,
}

fn content(content: &Value) -> Result<Said, String> {
    let parts = match content {
        Value::Null => return Ok(Said::default()),
        Value::String(text) => return Ok(Said { text: text.clone(), refusal: None }),
        Value::Array(parts) => parts,
        Value::Bool(_) | Value::Number(_) | Value::Object(_) => {
            return Err("its content is neither a text nor a list of parts".to_owned());
        }
    };
    let mut said = Said::default();
    for part in parts {
        let text = |name: &str| part.get(name).and_then(Value::as_str);
        match (part, text("type")) {
            (Value::String(words), _) => said.text.push_str(words),
            (_, Some("refusal")) => said.refusal = text("refusal").map(str::to_owned),
            (_, Some("text" | "output_text") | None) => said.text.push_str(text("text").unwrap_or_default()),
            // Thinking, and what is to come.
            (_, Some(_)) => {}
        }
    }
    Ok(said)
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn answer(text: &str, usage: Option<Usage>) -> Result<Reply, String> {
        Ok(Reply::Answer { text: text.into(), usage, cut: false })
    }

    #[test]
    fn answers_and_refusals_are_told_apart() {
        let read = |text: &str| read(text.as_bytes());
        let full = r#"{"choices":[{"message":{"role":"assistant","content":"yes"},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":2,"x":{}}}"#;
        assert_eq!(read(full), answer("yes", Some(Usage { input: 9, output: 2 })));
        for lie in [r#""usage":{"prompt_tokens":-1,"completion_tokens":2}"#, r#""usage":"free""#, r#""x":0"#]
        {
            let body = format!(r#"{{"choices":[{{"message":{{"content":"yes"}}}}],{lie}}}"#);
            assert_eq!(read(&body), answer("yes", None), "{lie}");
        }
        let refusal = r#"{"choices":[{"message":{"content":null,"refusal":"I\u202e cannot"}}]}"#;
        assert_eq!(read(refusal), Ok(Reply::Refusal { reason: "I cannot".into() }));
        let part = r#"{"choices":[{"message":{"content":[{"type":"refusal","refusal":"no"}]}}]}"#;
        assert_eq!(read(part), Ok(Reply::Refusal { reason: "no".into() }));
        let filtered = r#"{"choices":[{"message":{"content":""},"finish_reason":"content_filter"}]}"#;
        assert!(matches!(read(filtered), Ok(Reply::Refusal { .. })));
        for broken in
            ["", "{", &full[..40], r#"{"choices":[]}"#, "[]", r#"{"choices":[{"message":{"content":4}}]}"#]
        {
            assert!(read(broken).is_err(), "{broken}");
        }
        assert!(read(r#"{"result": "busy"}"#).expect_err("no answer").contains(r#"{"result": "busy"}"#));
    }

    /// What comes of a message, given as JSON, that ended for a reason.
    fn said(message: Value, finish: &str) -> Reply {
        let body = serde_json::json!({
            "choices": [{ "message": message, "finish_reason": finish }], "usage": { "completion_tokens": 77 },
        });
        read(body.to_string().as_bytes()).expect("it is an answer")
    }

    #[test]
    fn an_answer_is_found_where_servers_put_it() {
        use serde_json::json;
        let text = |message: Value| match said(message, "stop") {
            Reply::Answer { text, .. } => text,
            other => panic!("{other:?}"),
        };
        let parts = json!([
            { "type": "thinking", "thinking": [{ "type": "text", "text": "hm" }] },
            { "type": "text", "text": "ye" }, { "type": "output_text", "text": "s" }, {"type": "audio", "text": "no"},
        ]);
        assert_eq!(text(json!({ "content": parts })), "yes");
        assert_eq!(text(json!({ "content": "<think>no?</think>\n\nyes" })), "yes");
        assert_eq!(text(json!({ "content": "no?</think>yes" })), "yes");
        assert_eq!(text(json!({ "content": null, "reasoning_content": "yes" })), "yes");
        assert_eq!(text(json!({ "content": "", "reasoning": "no?</think> yes" })), "yes");
        assert_eq!(text(json!({ "content": "yes", "reasoning": "no?" })), "yes");
        assert_eq!(said(json!({ "content": "<think></think>" }), "stop"), Reply::Empty);
        assert_eq!(said(json!({ "content": [] }), "stop"), Reply::Empty);
    }

    #[test]
    fn an_answer_that_was_cut_is_told() {
        use serde_json::json;
        let thought = Reply::Thought { tokens: Some(77) };
        assert_eq!(said(json!({ "content": null, "reasoning_content": "hm hm" }), "length"), thought);
        assert_eq!(said(json!({ "content": "<think>hm" }), "length"), thought);
        assert_eq!(said(json!({ "content": "<think>hm" }), "stop"), thought);
        assert_eq!(said(json!({ "content": "" }), "length"), thought);
        assert!(matches!(said(json!({ "content": "ye" }), "length"), Reply::Answer { cut: true, .. }));
    }

    #[test]
    fn an_error_of_status_200_is_one() {
        let status = |body: &str| match read(body.as_bytes()) {
            Ok(Reply::Error(error)) => (error.status, error.message),
            other => panic!("{other:?}"),
        };
        assert_eq!(status(r#"{"error": {"message": "slow down", "code": 429}}"#), (429, "slow down".into()));
        let inside = r#"{"choices": [{"message": {"content": ""}, "finish_reason": "error", "error": {"message": "broken", "code": 502}}]}"#;
        assert_eq!(status(inside), (502, "broken".into()));
        let none = r#"{"error": null, "choices": [{"message": {"content": "yes"}}]}"#;
        assert_eq!(read(none.as_bytes()), answer("yes", None));
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
