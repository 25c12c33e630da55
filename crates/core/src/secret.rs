//! Keys, tokens and passwords: kept out of logs, errors, specs and the store.
//!
//! [`Secret`] holds one that is needed. [`redact`] takes them out of text on its way to people, and [`find`] says what it
//! would take out. Both go by what a secret looks like: a name or password in a URL, a value that is called a token, or the
//! shapes that well-known services give their keys. Something without any such mark cannot be known.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

/// What stands for a secret in text.
pub const REDACTED: &str = "[redacted]";

/// A key, token or password; shown nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// For the place alone that it is made for, such as a request's header.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// `text` without this secret in it: servers like to repeat what they were sent.
    pub fn removed_from(&self, text: &str) -> String {
        if self.0.is_empty() { text.to_owned() } else { text.replace(&self.0, REDACTED) }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

/// How a secret was known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// `scheme://name:password@host`
    UserInfo,
    /// `?token=...` of a URL, or `password=...`.
    Named,
    /// The shape of a well-known kind of key.
    Shape,
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UserInfo => "a URL with a name or a password in it",
            Self::Named => "a key, token or password by its name",
            Self::Shape => "what looks like a key or a token",
        })
    }
}

/// The first secret in a text, if there is one.
pub fn find(text: &str) -> Option<Mark> {
    spans(text).first().map(|(_, mark)| *mark)
}

/// The text with every secret in it replaced.
pub fn redact(text: &str) -> Cow<'_, str> {
    let found = spans(text);
    if found.is_empty() {
        return Cow::Borrowed(text);
    }
    let (mut out, mut from) = (String::with_capacity(text.len()), 0);
    for (span, _) in found {
        if span.start >= from {
            out.push_str(text.get(from..span.start).unwrap_or_default());
            out.push_str(REDACTED);
        }
        from = from.max(span.end);
    }
    out.push_str(text.get(from..).unwrap_or_default());
    Cow::Owned(out)
}

/// Whether a field or variable of this name holds a secret.
pub fn is_secret_name(name: &str) -> bool {
    let plain: String =
        name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
    const ENDS: [&str; 11] = [
        "password",
        "passwd",
        "passphrase",
        "secret",
        "token",
        "apikey",
        "accesskey",
        "accesskeyid",
        "secretkey",
        "privatekey",
        "credentials",
    ];
    ENDS.iter().any(|end| plain.ends_with(end))
}

/// What our own tokens begin with; names of metrics do, too.
const OURS: &str = "crescendo_";

/// Which bytes a key may have.
type Alphabet = fn(u8) -> bool;

/// Prefix, the least number of characters that follow it, and which they are.
const SHAPES: [(&str, usize, Alphabet); 15] = [
    ("sk-", 20, word),
    ("AKIA", 16, upper_or_digit),
    ("ASIA", 16, upper_or_digit),
    ("ghp_", 30, word),
    ("gho_", 30, word),
    ("ghs_", 30, word),
    ("github_pat_", 30, word),
    ("glpat-", 20, word),
    ("hf_", 30, word),
    ("xoxb-", 20, word),
    ("xoxp-", 20, word),
    ("AIza", 35, word),
    ("ya29.", 20, word),
    // Three parts with dots: a JSON web token.
    ("eyJ", 40, |byte| word(byte) || byte == b'.'),
    // Ours.
    (OURS, 43, word),
];

fn word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
}

fn upper_or_digit(byte: u8) -> bool {
    byte.is_ascii_uppercase() || byte.is_ascii_digit()
}

/// Where secrets are, in order; they may overlap.
fn spans(text: &str) -> Vec<(Range<usize>, Mark)> {
    let mut found = Vec::new();
    user_infos(text, &mut found);
    named(text, &mut found);
    members(text, &mut found);
    shapes(text, &mut found);
    bearers(text, &mut found);
    private_keys(text, &mut found);
    found.sort_by_key(|(span, _)| (span.start, std::cmp::Reverse(span.end)));
    found
}

fn user_infos(text: &str, found: &mut Vec<(Range<usize>, Mark)>) {
    for (at, _) in text.match_indices("://") {
        let start = at + 3;
        let rest = text.get(start..).unwrap_or_default();
        let end = rest
            .find(|c: char| c.is_whitespace() || c.is_control() || "/?#\"'`<>\\,;(){}[]".contains(c))
            .unwrap_or(rest.len());
        if let Some(user) = rest.get(..end).and_then(|authority| authority.rfind('@')).filter(|at| *at > 0) {
            found.push((start..start + user, Mark::UserInfo));
        }
    }
}

/// `name=value`, where the name says that the value is secret; in the query of a URL more names do.
fn named(text: &str, found: &mut Vec<(Range<usize>, Mark)>) {
    const IN_QUERIES: [&str; 6] = ["key", "sig", "signature", "auth", "credential", "code"];
    for (at, _) in text.match_indices('=') {
        let before = text.get(..at).unwrap_or_default();
        let start = before
            .rfind(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')))
            .map_or(0, |at| {
                at + before.get(at..).and_then(|rest| rest.chars().next()).map_or(1, char::len_utf8)
            });
        let name = before.get(start..).unwrap_or_default();
        let in_query = before.get(..start).is_some_and(|head| head.ends_with(['?', '&']));
        let last = name.rsplit(['-', '_', '.']).next().unwrap_or_default().to_ascii_lowercase();
        if name.is_empty() || !(is_secret_name(name) || (in_query && IN_QUERIES.contains(&last.as_str()))) {
            continue;
        }
        let rest = text.get(at + 1..).unwrap_or_default();
        // As it is, or inside a string that has been escaped, perhaps more than once.
        let quote = opening_quote(rest);
        let from = at + 1 + quote.map_or(0, str::len);
        let value = text.get(from..).unwrap_or_default();
        let ends_plainly = |c: char| c.is_whitespace() || c.is_control() || "&\"'`<>,;(){}[]#".contains(c);
        let end = match quote {
            Some(quote) => value.find(quote),
            None => value.find(ends_plainly),
        };
        let end = end.unwrap_or(value.len());
        if end > 0 {
            found.push((from..from + end, Mark::Named));
        }
    }
}

/// The quote that a text begins with, and the backslashes before it.
fn opening_quote(text: &str) -> Option<&str> {
    let slashes = text.bytes().take_while(|byte| *byte == b'\\').count();
    let quote = text.get(..slashes + 1)?;
    quote.ends_with(['"', '\'']).then_some(quote)
}

/// `"name":"value"`, as in JSON.
fn members(text: &str, found: &mut Vec<(Range<usize>, Mark)>) {
    for (at, pattern) in text.match_indices("\":\"") {
        let before = text.get(..at).unwrap_or_default();
        let name = before.rsplit('"').next().unwrap_or_default();
        let start = at + pattern.len();
        let value = text.get(start..).unwrap_or_default();
        let mut escaped = false;
        let end = value.bytes().position(|byte| {
            let ends = byte == b'"' && !escaped;
            escaped = byte == b'\\' && !escaped;
            ends
        });
        let end = end.unwrap_or(value.len());
        if is_secret_name(name) && end > 0 {
            found.push((start..start + end, Mark::Named));
        }
    }
}

fn shapes(text: &str, found: &mut Vec<(Range<usize>, Mark)>) {
    for (prefix, least, allowed) in SHAPES {
        for (at, _) in text.match_indices(prefix) {
            let bytes = text.as_bytes();
            let begins_a_word = at == 0 || bytes.get(at - 1).is_none_or(|byte| !word(*byte));
            let rest = bytes.get(at + prefix.len()..).unwrap_or_default();
            let length = rest.iter().take_while(|byte| allowed(**byte)).count();
            // Of names, none has a capital letter; of random tokens, all do.
            let random = prefix != OURS || rest.iter().take(length).any(u8::is_ascii_uppercase);
            if begins_a_word && length >= least && random {
                found.push((at..at + prefix.len() + length, Mark::Shape));
            }
        }
    }
}

/// `Bearer TOKEN`, as in a header.
fn bearers(text: &str, found: &mut Vec<(Range<usize>, Mark)>) {
    for scheme in ["Bearer ", "bearer "] {
        for (at, _) in text.match_indices(scheme) {
            let start = at + scheme.len();
            let rest = text.as_bytes().get(start..).unwrap_or_default();
            let in_token = |byte: &&u8| word(**byte) || matches!(**byte, b'.' | b'~' | b'+' | b'/' | b'=');
            let length = rest.iter().take_while(in_token).count();
            // Shorter ones are words: "a bearer token".
            if length >= 12 {
                found.push((start..start + length, Mark::Shape));
            }
        }
    }
}

/// PEM of a private key, up to its end or that of the text.
fn private_keys(text: &str, found: &mut Vec<(Range<usize>, Mark)>) {
    for (at, _) in text.match_indices("-----BEGIN ") {
        let rest = text.get(at..).unwrap_or_default();
        let line = rest.lines().next().unwrap_or_default();
        if !line.contains("PRIVATE KEY") {
            continue;
        }
        let end = rest
            .find("-----END ")
            .and_then(|end| rest.get(end + 9..)?.find("-----").map(|more| end + 9 + more + 5))
            .unwrap_or(rest.len());
        found.push((at..at + end, Mark::Shape));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "sk-0123456789abcdefghijABCD";

    #[test]
    fn a_secret_is_shown_nowhere() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret} {secret:?}"), "[redacted] [redacted]");
        assert_eq!(secret.expose(), "hunter2");
        assert_eq!(secret.removed_from("bad key hunter2!"), "bad key [redacted]!");
        assert_eq!(Secret::new("").removed_from("abc"), "abc");
    }

    #[test]
    fn secrets_are_taken_out_and_the_rest_stays() {
        let jwt = format!("eyJhbGciOiJIUzI1NiJ9.{}.{}", "a".repeat(30), "b".repeat(20));
        let ours = format!("crescendo_{}", "Ab0_".repeat(11));
        for (text, shown) in [
            ("https://me:pw@host/v1 failed".to_owned(), "https://[redacted]@host/v1 failed"),
            ("s3://id@bucket/x".into(), "s3://[redacted]@bucket/x"),
            ("(postgres://a:b%40c@db:5432/x)".into(), "(postgres://[redacted]@db:5432/x)"),
            ("GET https://h/x?a=1&token=abc&b=2".into(), "GET https://h/x?a=1&token=[redacted]&b=2"),
            (
                "https://h/x?X-Amz-Signature=0f&X-Amz-Date=1".into(),
                "https://h/x?X-Amz-Signature=[redacted]&X-Amz-Date=1",
            ),
            ("https://h/?key=abc#top".into(), "https://h/?key=[redacted]#top"),
            ("AWS_SECRET_ACCESS_KEY=wJalr/K7 and more".into(), "AWS_SECRET_ACCESS_KEY=[redacted] and more"),
            ("error api_key=\"a b\" x".into(), "error api_key=\"[redacted]\" x"),
            (r#"{"api_key":"a \"b","x":"y"}"#.into(), r#"{"api_key":"[redacted]","x":"y"}"#),
            (r#"{"m":"api_key=\"a b\" x"}"#.into(), r#"{"m":"api_key=\"[redacted]\" x"}"#),
            ("password=x".into(), "password=[redacted]"),
            (format!("key {KEY}, sorry"), "key [redacted], sorry"),
            ("AKIAIOSFODNN7EXAMPLE".into(), "[redacted]"),
            (format!("authorization: Bearer {jwt}"), "authorization: Bearer [redacted]"),
            (format!("token {ours}."), "token [redacted]."),
            (
                "-----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY-----\nrest".into(),
                "[redacted]\nrest",
            ),
            ("-----BEGIN PRIVATE KEY-----\nMII".into(), "[redacted]"),
        ] {
            assert_eq!(redact(&text), shown, "{text}");
            assert!(find(&text).is_some(), "{text}");
        }
    }

    #[test]
    fn what_is_no_secret_stays() {
        for text in [
            "https://host:8080/v1/x?page=2",
            "mail to me@example.com about http://host/a@b",
            "job uno-7f3kq2 on node sk-1, task-0123456789abcdefghijk",
            "sha256=9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "key=jobs/uno/stage-1/pairs/unit-000001-l1.tar tokens=128 keys=3",
            "weights: store:models/flux1-dev.safetensors, s3://models/key/token.safetensors",
            "crescendo_tls_certificate_expiry_timestamp_seconds crescendo_curator_pairs_rejected_total",
            "-----BEGIN CERTIFICATE-----\nMII",
            "a bearer token is missing",
            "token: missing; password=",
        ] {
            assert_eq!(redact(text), text);
            assert_eq!(find(text), None, "{text}");
        }
    }

    #[test]
    fn names_say_what_they_hold() {
        for name in ["password", "apiKey", "api_key", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "clientSecret"] {
            assert!(is_secret_name(name), "{name}");
        }
        for name in ["key", "tokens", "maxTokens", "secretary", "keyFile", "tokenizer"] {
            assert!(!is_secret_name(name), "{name}");
        }
    }

    proptest! {
        #[test]
        fn a_key_never_gets_through_whatever_is_around_it(before in "\\PC{0,40}", after in "\\PC{0,40}") {
            let text = format!("{before} {KEY} {after} https://u:{KEY}@h/ x?token={KEY}");
            prop_assert!(!redact(&text).contains(KEY), "{}", redact(&text));
            // Doing it twice is doing it once.
            let once = redact(&text).into_owned();
            prop_assert!(!redact(&once).contains(KEY));
        }
    }
}
