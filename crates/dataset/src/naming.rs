//! Words out of file names, ids out of words, and what is not a name. Pure.

/// Characters of a subject's words beyond which they are no longer a name.
pub const MAX_WORDS_CHARS: usize = 100;

/// Names that cameras, phones and programs give, in place of what a picture shows.
const CAMERA_WORDS: [&str; 27] = [
    "capture",
    "dcim",
    "dji",
    "download",
    "dsc",
    "dscf",
    "dscn",
    "file",
    "gopr",
    "image",
    "img",
    "mvimg",
    "new",
    "of",
    "photo",
    "pic",
    "picture",
    "pxl",
    "scan",
    "screen",
    "screenshot",
    "shot",
    "signal",
    "unnamed",
    "untitled",
    "wa",
    "whatsapp",
];

/// The words in a file's or folder's name, without its ending: `red_fox-02` gives "red fox". Trailing numbers are dropped.
/// `None` if nothing in it is a word: `IMG_2041`, `0017`.
pub fn words_of(stem: &str) -> Option<String> {
    let mut tokens: Vec<&str> = stem
        .split(|c: char| !(c.is_alphanumeric() || c == '\'' || c == '’'))
        .filter(|token| !token.is_empty())
        .collect();
    while tokens.last().is_some_and(|token| token.chars().all(char::is_numeric)) {
        tokens.pop();
    }
    if let Some(last) = tokens.last_mut() {
        *last = without_number(last);
    }
    let words = tokens.join(" ");
    is_words(&words).then_some(words)
}

/// `fox2` without its number. `r2d2` and `4x4` are names as they are.
fn without_number(token: &str) -> &str {
    let letters = token.trim_end_matches(|c: char| c.is_ascii_digit());
    if letters.chars().count() >= 2 && letters.chars().all(char::is_alphabetic) { letters } else { token }
}

/// Whether at least one word of `text` is a word of a language, as far as can be told from its letters.
fn is_words(text: &str) -> bool {
    text.split(|c: char| !c.is_alphanumeric()).any(|token| {
        let letters = token.chars().filter(|c| c.is_alphabetic()).count();
        // One letter of a script whose letters are words or syllables is enough.
        let enough = if token.is_ascii() { letters >= 2 } else { letters >= 1 };
        let known =
            CAMERA_WORDS.contains(&token.to_lowercase().trim_end_matches(|c: char| c.is_ascii_digit()));
        enough && !known && !is_code(token)
    })
}

/// A hash, a serial number or a part of one: eight and more hexadecimal digits with a number among them.
fn is_code(token: &str) -> bool {
    token.len() >= 8
        && token.bytes().all(|b| b.is_ascii_hexdigit())
        && token.bytes().any(|b| b.is_ascii_digit())
}

/// What about a subject's words will not do in a caption such as "WORDS on plain blue, left".
pub fn words_problem(words: &str) -> Option<String> {
    if words.trim().is_empty() {
        return Some("it has no words".into());
    }
    if words.chars().any(char::is_control) {
        return Some("its words have line breaks or control characters".into());
    }
    if !is_words(words) {
        return Some(format!("{words:?} is not words; captions say it of the subject"));
    }
    let count = words.chars().count();
    if count > MAX_WORDS_CHARS {
        return Some(format!(
            "its words have {count} characters, more than {MAX_WORDS_CHARS}; captions want a name, such as \"a red fox\""
        ));
    }
    if words.contains('_') {
        return Some(format!("{words:?} has underscores in place of spaces"));
    }
    if words.contains(',') || words.trim_end().ends_with('.') {
        return Some(format!(
            "{words:?} reads like the caption of a whole picture; say only what the subject is, such as \"a red fox\""
        ));
    }
    None
}

/// A name for files and records out of words: lower case, letters and digits of any script, joined by `-`.
pub fn id_of(words: &str) -> String {
    let lower = words.to_lowercase();
    let parts: Vec<&str> =
        lower.split(|c: char| !c.is_alphanumeric()).filter(|part| !part.is_empty()).collect();
    parts.join("-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn file_names_become_words() {
        for (stem, words) in [
            ("red_fox", Some("red fox")),
            ("red-fox-02", Some("red fox")),
            ("red fox (3)", Some("red fox")),
            ("red_fox2", Some("red fox")),
            ("Grandma's teapot", Some("Grandma's teapot")),
            ("r2d2", Some("r2d2")),
            ("t-rex", Some("t rex")),
            ("7_up_can", Some("7 up can")),
            ("лиса_1", Some("лиса")),
            ("猫", Some("猫")),
            ("img_red_fox", Some("img red fox")),
            ("IMG_2041", None),
            ("DSC01234", None),
            ("PXL_20240101_120000", None),
            ("Screenshot 2024-01-01", None),
            ("0017", None),
            ("3f2a9c81d0", None),
            ("x", None),
            ("", None),
            ("---", None),
        ] {
            assert_eq!(words_of(stem).as_deref(), words, "{stem}");
        }
    }

    #[test]
    fn what_is_not_a_name_is_told() {
        for (words, says) in [
            ("a red fox", None),
            ("a fox in socks", None),
            (" ", Some("no words")),
            ("IMG_2041", Some("not words")),
            ("red_fox", Some("underscores")),
            ("a photo of a fox, sitting on grass", Some("whole picture")),
            ("A fox sits.", Some("whole picture")),
            ("a\nfox", Some("line breaks")),
        ] {
            let found = words_problem(words);
            assert_eq!(found.is_some(), says.is_some(), "{words}: {found:?}");
            assert!(found.unwrap_or_default().contains(says.unwrap_or_default()), "{words}");
        }
        assert!(words_problem(&"fox ".repeat(40)).is_some_and(|reason| reason.contains("160 characters")));
    }

    #[test]
    fn ids_are_plain() {
        assert_eq!(id_of("Grandma's  Teapot!"), "grandma-s-teapot");
        assert_eq!(id_of("../../etc"), "etc");
        assert_eq!(id_of("!"), "");
    }

    proptest! {
        #[test]
        fn any_name_gives_words_or_none(stem in "\\PC{0,40}") {
            if let Some(words) = words_of(&stem) {
                prop_assert!(is_words(&words) && !words.contains(['_', '/', '.']));
                prop_assert!(!id_of(&words).is_empty());
            }
            prop_assert!(!id_of(&stem).contains(['/', '.', ' ']));
        }
    }
}
