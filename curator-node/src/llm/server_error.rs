//! What a server says when it gives no answer: a status, and an error that most servers write as `{"error": {…}}`. Gateways
//! send the same with status 200, for the whole or inside a choice; then its inner code counts.

use super::excerpt::excerpt;
use serde_json::Value;
use std::fmt;

/// An error as a server told it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerError {
    /// What it means: the status of the response or that of the code inside one of status 200, unless its words say more.
    pub status: u16,
    /// Under which status it was sent.
    pub sent: u16,
    /// It came inside a response of status 200.
    pub inside: bool,
    /// The server's words, one line; the beginning of the body where it has no words of its own.
    pub message: String,
    /// The field of the request that it is about, if it says so.
    pub param: Option<String>,
    /// A filter in front of the model turned the content down.
    pub moderated: bool,
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ServerError { status, sent, inside, message, .. } = self;
        match inside {
            true => write!(f, "an answer of status 200 with error {status} in it: {message}"),
            false => write!(f, "status {sent}: {message}"),
        }
    }
}

impl ServerError {
    /// The error of a response with a failing `status`.
    pub fn of_response(sent: u16, body: &str) -> ServerError {
        let value: Value = serde_json::from_str(body).unwrap_or_default();
        let told = ["error", "detail", "message"].iter().find_map(|name| value.get(name));
        let error = told.filter(|told| !told.is_null()).unwrap_or(&value);
        let message = message(error).unwrap_or_else(|| excerpt(body));
        // Some words say more than the status under which they are sent.
        let status = words(error).find_map(lasting).unwrap_or(sent);
        let status = if is_about_money(&message) && (status == 400 || status == 429) { 402 } else { status };
        ServerError { status, sent, inside: false, message, param: param(error), moderated: moderated(error) }
    }

    /// The error inside a response of status 200.
    pub fn of_value(error: &Value) -> ServerError {
        let number = |value: &Value| {
            value.as_u64().or_else(|| value.as_str()?.trim().parse().ok()).and_then(|n| u16::try_from(n).ok())
        };
        let fields = ["code", "status", "status_code"].iter().filter_map(|name| error.get(name));
        let numbered = fields.filter_map(number).find(|n| (400..600).contains(n));
        let named = words(error).find_map(lasting).or(numbered).or_else(|| words(error).find_map(passing));
        let message = message(error).unwrap_or_else(|| excerpt(&error.to_string()));
        // Nothing is known against its passing.
        let status = named.unwrap_or(500);
        let status = if is_about_money(&message) && (status == 400 || status == 429) { 402 } else { status };
        ServerError {
            status,
            sent: 200,
            inside: true,
            message,
            param: param(error),
            moderated: moderated(error),
        }
    }

    /// Whether the server, or the model, takes no pictures. There is no code for it that servers agree on: llama.cpp says it
    /// with 500, vLLM with 400, OpenRouter with 404, so its words are looked at. Only of use where pictures were sent.
    pub fn takes_no_pictures(&self) -> bool {
        const PICTURES: &[&str] = &["image", "picture", "multimodal", "multi-modal", "vision", "mmproj"];
        const NOT: &[&str] = &[
            "not support",
            "n't support",
            "unsupported",
            "not taken",
            "not accept",
            "not allowed",
            "not enabled",
            "not a multimodal",
            "not a vision",
            "no endpoints found",
            "only supported by",
            "unknown variant",
            "at most 0",
        ];
        // A format or a size that is not taken says nothing of pictures as such.
        const OF_ONE: &[&str] =
            &["format", "too large", "size", "resolution", "corrupt", "decode", "media type"];
        let said = self.message.to_lowercase();
        let says = |words: &[&str]| words.iter().any(|word| said.contains(word));
        says(PICTURES) && says(NOT) && !says(OF_ONE)
    }

    /// Whether it is about a field of the request: by its `param`, or where there is none by its words.
    pub fn is_about(&self, field: &str) -> bool {
        match &self.param {
            Some(param) => param == field,
            None => self.message.contains(field),
        }
    }
}

/// The words that name the kind of an error.
fn words(error: &Value) -> impl Iterator<Item = &str> {
    ["code", "type", "status"].iter().filter_map(|name| error.get(name)?.as_str())
}

/// What a word means that names a failure of the account, the key or the model: no other request would fare better.
fn lasting(word: &str) -> Option<u16> {
    Some(match word {
        "insufficient_quota"
        | "billing_hard_limit_reached"
        | "billing_not_active"
        | "insufficient_balance" => 402,
        "invalid_api_key" | "authentication_error" | "account_deactivated" | "UNAUTHENTICATED" => 401,
        "model_not_found" | "model_not_available" | "NOT_FOUND" => 404,
        "permission_error" | "PERMISSION_DENIED" => 403,
        _ => return None,
    })
}

/// What a word means that names another failure.
fn passing(word: &str) -> Option<u16> {
    Some(match word {
        "rate_limit_exceeded" | "rate_limit_error" | "too_many_requests" | "RESOURCE_EXHAUSTED" => 429,
        "invalid_request_error"
        | "context_length_exceeded"
        | "content_filter"
        | "content_policy_violation"
        | "INVALID_ARGUMENT" => 400,
        _ => return None,
    })
}

fn is_about_money(message: &str) -> bool {
    let said = message.to_lowercase();
    ["credit balance", "insufficient balance", "insufficient credits", "exceeded your current quota"]
        .iter()
        .any(|words| said.contains(words))
}

fn param(error: &Value) -> Option<String> {
    error.get("param")?.as_str().filter(|param| !param.is_empty()).map(excerpt)
}

/// OpenRouter's, of a provider that looks at what is sent.
fn moderated(error: &Value) -> bool {
    error
        .get("metadata")
        .is_some_and(|facts| facts.get("flagged_input").is_some() || facts.get("reasons").is_some())
}

/// The words of an error, with those of the server behind a gateway.
fn message(error: &Value) -> Option<String> {
    let said = match error {
        Value::String(text) => text.clone(),
        Value::Array(all) if !all.is_empty() => {
            all.iter().map(Value::to_string).collect::<Vec<_>>().join(", ")
        }
        Value::Object(fields) => {
            let own = ["message", "detail", "error"].iter().find_map(|name| fields.get(*name)?.as_str())?;
            match error.pointer("/metadata/raw").and_then(Value::as_str) {
                Some(behind) => format!("{own}: {behind}"),
                None => own.to_owned(),
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => return None,
    };
    Some(excerpt(&said)).filter(|said| !said.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_servers_words_are_kept_in_each_of_its_forms() {
        let of = |body: &str| ServerError::of_response(400, body);
        assert_eq!(
            of(r#"{"error": {"message": "no\u202e such thing", "param": null}}"#).message,
            "no such thing"
        );
        assert_eq!(of(r#"{"error": "model 'x' not found"}"#).message, "model 'x' not found");
        assert_eq!(of(r#"{"detail": "Not authenticated"}"#).message, "Not authenticated");
        assert!(
            of(r#"{"detail": [{"loc": ["body", "max_tokens"], "msg": "Extra inputs"}]}"#)
                .is_about("max_tokens")
        );
        assert_eq!(of("<h1>Bad\ngateway</h1>").message, "<h1>Bad gateway</h1>");
        assert_eq!(of(r#"{"error": {"x": 1}}"#).message, r#"{"error": {"x": 1}}"#);
        let behind =
            r#"{"error": {"message": "Provider returned error", "metadata": {"raw": "overloaded"}}}"#;
        assert_eq!(of(behind).message, "Provider returned error: overloaded");
        assert_eq!(of(r#"{"error": {"message": "busy"}}"#).to_string(), "status 400: busy");
    }

    #[test]
    fn some_words_say_more_than_the_status() {
        let status = |status, error: Value| {
            ServerError::of_response(status, &json!({ "error": error }).to_string()).status
        };
        assert_eq!(status(429, json!({ "message": "no credit left", "code": "insufficient_quota" })), 402);
        assert_eq!(status(429, json!({ "message": "slow down", "code": "rate_limit_exceeded" })), 429);
        assert_eq!(status(400, json!({ "message": "x", "code": "model_not_found" })), 404);
        let poor = "Your credit balance is too low to access the API";
        assert_eq!(status(400, json!({ "message": poor, "type": "invalid_request_error" })), 402);
        assert_eq!(status(503, json!({ "message": "x" })), 503);
    }

    #[test]
    fn the_inner_code_counts() {
        let status = |error: Value| ServerError::of_value(&error).status;
        assert_eq!(status(json!({ "message": "x", "code": 429 })), 429);
        assert_eq!(status(json!({ "message": "x", "code": "401" })), 401);
        assert_eq!(status(json!({ "message": "x", "code": 400, "type": "invalid_request_error" })), 400);
        assert_eq!(status(json!({ "message": "x", "type": "rate_limit_error" })), 429);
        assert_eq!(status(json!({ "message": "x", "code": 12 })), 500);
        assert_eq!(status(json!("overloaded")), 500);
        let told = ServerError::of_value(&json!({ "message": "inner", "code": 429 })).to_string();
        assert_eq!(told, "an answer of status 200 with error 429 in it: inner");
    }

    #[test]
    fn servers_that_take_no_pictures_are_known_by_their_words() {
        let says =
            |words: &str| ServerError { message: words.into(), ..ServerError::default() }.takes_no_pictures();
        for words in [
            "pictures are not taken",
            "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj",
            "No endpoints found that support image input",
            "Qwen/Qwen3-8B is not a multimodal model",
            "At most 0 image(s) may be provided in one prompt.",
            "unknown variant `image_url`, expected `text`",
            "Invalid content type. image_url is only supported by certain models.",
        ] {
            assert!(says(words), "{words}");
        }
        for words in [
            "out of order",
            "the image is too large, not supported",
            "unsupported image format",
            "not supported",
        ] {
            assert!(!says(words), "{words}");
        }
    }
}
