//! Single values: reading them, describing them, guessing which was meant.

use super::tree::{Value, shorten};

pub(super) fn number(text: &str, plain: bool) -> Option<f64> {
    let digits = text.bytes().any(|b| b.is_ascii_digit());
    let fits = text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.' | b'e' | b'E'));
    if !plain || !digits || !fits {
        return None;
    }
    text.parse::<f64>().ok().filter(|value| value.is_finite())
}

pub(super) fn describe(value: &Value) -> String {
    match value {
        Value::Null => "nothing".into(),
        Value::Scalar { text, plain } => describe_scalar(text, *plain),
        Value::List(items) => format!("a list of {}", items.len()),
        Value::Map(_) => "a section of fields".into(),
        Value::Refused => "something unreadable".into(),
    }
}

pub(super) fn describe_scalar(text: &str, plain: bool) -> String {
    if plain && number(text, plain).is_some() {
        format!("the number {}", shorten(text))
    } else {
        format!("the text `{}`", shorten(text))
    }
}

/// The known name that was most likely meant.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Long strangers are not worth the comparison.
    if name.len() > 64 {
        return None;
    }
    let plain = |text: &str| text.to_ascii_lowercase().replace(['-', '_', ' '], "");
    let wanted = plain(name);
    known
        .map(|candidate| (strsim::damerau_levenshtein(&wanted, &plain(candidate)), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}
