//! The one JSON object that an answer consists of: alone, in a code fence, or with words before and after it.

use serde_json::Value;

/// Why there is no such object. The messages go back to the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    #[error("it has no JSON object with a field \"{key}\"")]
    None { key: &'static str },
    #[error("its JSON object does not end")]
    Unclosed,
    #[error("it has {count} different JSON objects with a field \"{key}\", and only one is wanted")]
    Several { key: &'static str, count: usize },
}

/// The text of the one outermost JSON object in `text` that has the field `key`. Objects within others are no candidates, and
/// neither are those without the field; what is said twice alike is one. Time grows with the length of the text alone.
pub fn only_object<'a>(text: &'a str, key: &'static str) -> Result<&'a str, ObjectError> {
    let mut found: Vec<&str> = Vec::new();
    let mut at = 0;
    let unclosed = loop {
        let Some(begin) = text.get(at..).and_then(|rest| rest.find('{')).map(|n| at + n) else { break None };
        let rest = text.get(begin..).unwrap_or_default();
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
        match values.next() {
            Some(Ok(value)) => {
                let end = values.byte_offset();
                let object = rest.get(..end).unwrap_or_default();
                if value.get(key).is_some() && !found.contains(&object) {
                    found.push(object);
                }
                at = begin + end.max(1);
            }
            // What is begun and not ended has eaten all that follows.
            Some(Err(error)) if error.is_eof() => break Some(rest),
            // What comes before the error is part of what is broken, and no object of its own.
            Some(Err(error)) => at = begin + offset_of(rest, &error).max(1),
            None => break None,
        }
        while !text.is_char_boundary(at) {
            at += 1;
        }
    };
    let begun = unclosed.is_some_and(|rest| rest.contains(&format!("\"{key}\"")));
    match found.as_slice() {
        _ if begun => Err(ObjectError::Unclosed),
        [] => Err(ObjectError::None { key }),
        [object] => Ok(*object),
        several => Err(ObjectError::Several { key, count: several.len() }),
    }
}

/// Bytes of `text` before the place of an error, or one less: whether the byte itself is counted depends on the error.
fn offset_of(text: &str, error: &serde_json::Error) -> usize {
    let before: usize = text.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum();
    (before + error.column()).saturating_sub(1).min(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn only(text: &str) -> Result<&str, ObjectError> {
        only_object(text, "scores")
    }

    #[test]
    fn the_object_is_found_with_words_around_it() {
        for text in [
            "{\"scores\": []}",
            "```json\n{\"scores\": []}\n```",
            "Here it is:\n\n```json\n{\"scores\": []}\n```\n\nAll parts {match}.",
            "{so} {\"example\": 1} and: {\"scores\": []}",
            "{\"scores\": []} once more: {\"scores\": []}",
            "{{\"scores\": []}}",
            "<|begin_of_box|>{\"scores\": []}<|end_of_box|> {",
            "[{\"scores\": []}]",
        ] {
            assert_eq!(only(text), Ok("{\"scores\": []}"), "{text}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_not_read() {
        assert_eq!(
            only("{\"scores\": [1]} or {\"scores\": [2]}"),
            Err(ObjectError::Several { key: "scores", count: 2 })
        );
        for none in ["", "4", "{\"answer\": {\"scores\": []}}", "{\"a\": {\"scores\": []} x}", "[]", "{}"] {
            assert_eq!(only(none), Err(ObjectError::None { key: "scores" }), "{none}");
        }
        for cut in ["{\"scores\": [", "{\"scores\": []} no, {\"scores\": [4"] {
            assert_eq!(only(cut), Err(ObjectError::Unclosed), "{cut}");
        }
    }

    #[test]
    fn deep_and_long_texts_take_no_long_time() {
        for text in [
            "{\"a\":".repeat(200_000),
            "{".repeat(1_000_000),
            "{\"a\":[".repeat(160_000),
            "{\"".repeat(500_000),
        ] {
            assert!(only(&text).is_err());
        }
    }

    proptest! {
        #[test]
        fn any_text_is_searched_without_a_panic(text in "\\PC{0,60}|[{}\":,a-z\\[\\]\\n é]{0,120}") {
            if let Ok(object) = only_object(&text, "a") {
                let is_object = object.starts_with('{') && object.ends_with('}');
                prop_assert!(is_object && text.contains(object));
            }
        }
    }
}
