//! A conversation, as a request's body.

use super::dialect::Dialect;
use super::usage::{Usage, text_tokens};
use base64::Engine as _;
use serde_json::{Value, json};
use std::sync::Arc;

/// Who says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    System,
    User,
    Assistant,
}

impl Role {
    fn word(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }
}

/// A PNG file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Png {
    pub bytes: Arc<[u8]>,
    pub pixels: u64,
}

/// What one side says at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub role: Role,
    /// Before the text.
    pub pictures: Vec<Png>,
    pub text: String,
}

impl Message {
    /// Words alone.
    pub fn words(role: Role, text: impl Into<String>) -> Message {
        Message { role, pictures: Vec::new(), text: text.into() }
    }
}

/// The body of `POST chat/completions`. The same conversation in the same dialect gives the same bytes; answers are found by
/// those of the default dialect, whichever they were asked in.
pub fn body(model: &str, max_tokens: u32, conversation: &[Message], dialect: Dialect) -> Vec<u8> {
    let messages: Vec<Value> = conversation.iter().map(message).collect();
    let mut body = json!({ "model": model, "messages": messages });
    if dialect.has_temperature {
        // The likeliest answer: asking twice is to say the same as far as the model allows.
        body["temperature"] = json!(0);
    }
    body[dialect.limit.name()] = json!(max_tokens);
    body["stream"] = json!(false);
    body.to_string().into_bytes()
}

fn message(message: &Message) -> Value {
    let Message { role, pictures, text } = message;
    if pictures.is_empty() {
        return json!({ "role": role.word(), "content": text });
    }
    let mut content: Vec<Value> = pictures
        .iter()
        .map(|png| {
            let data = base64::engine::general_purpose::STANDARD.encode(&png.bytes);
            json!({ "type": "image_url", "image_url": { "url": format!("data:image/png;base64,{data}") } })
        })
        .collect();
    content.push(json!({ "type": "text", "text": text }));
    json!({ "role": role.word(), "content": content })
}

/// Tokens that a conversation will take if the answer is as long as it may be. On the high side: about three bytes a
/// token, and a picture by its area as large vision models cut it up (14 × 14 pixels a patch, four patches a token).
pub fn estimate(conversation: &[Message], max_tokens: u32) -> Usage {
    let input = conversation.iter().map(|message| {
        let pictures: u64 = message.pictures.iter().map(|png| 100 + png.pixels / 784).sum();
        8 + text_tokens(&message.text) + pictures
    });
    Usage { input: input.sum(), output: u64::from(max_tokens) }
}

/// The tokens that the pictures and words of a conversation need at least, on the low side; `None` where it has no pictures.
/// Models that see little of a picture still spend this many on it; who claims fewer has seen none of them.
pub fn least_with_pictures(conversation: &[Message]) -> Option<u64> {
    let pictures: Vec<u64> = conversation
        .iter()
        .flat_map(|message| &message.pictures)
        .map(|png| (png.pixels / 784).min(64))
        .collect();
    if pictures.is_empty() {
        return None;
    }
    let words: u64 = conversation.iter().map(|message| message.text.len() as u64 / 5).sum();
    Some(words + pictures.iter().sum::<u64>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::dialect::LimitField;

    #[test]
    fn bodies_are_as_servers_expect_them() {
        let png = Png { bytes: Arc::from(&b"\x89PNG"[..]), pixels: 784_000 };
        let conversation = [
            Message::words(Role::System, "judge"),
            Message { role: Role::User, pictures: vec![png], text: "say \"x\"".into() },
        ];
        let of = |dialect| -> Value {
            serde_json::from_slice(&body("m", 77, &conversation, dialect)).expect("json")
        };
        let body = of(Dialect::default());
        assert_eq!(
            body,
            json!({
                "model": "m", "max_tokens": 77, "temperature": 0, "stream": false,
                "messages": [
                    { "role": "system", "content": "judge" },
                    { "role": "user", "content": [
                        { "type": "image_url", "image_url": { "url": "data:image/png;base64,iVBORw==" } },
                        { "type": "text", "text": "say \"x\"" },
                    ] },
                ],
            })
        );
        assert_eq!(estimate(&conversation, 77), Usage { input: 8 + 2 + 8 + 3 + 1100, output: 77 });
        assert_eq!(least_with_pictures(&conversation), Some(1 + 1 + 64));
        assert_eq!(least_with_pictures(&conversation[..1]), None);
        let newer = of(Dialect { has_temperature: false, limit: LimitField::MaxCompletionTokens });
        assert_eq!(newer["max_completion_tokens"], 77);
        assert!(newer.get("max_tokens").is_none() && newer.get("temperature").is_none());
    }
}
