//! Phrases from outside: files, specs, models. Cleaned, compared, refused.

/// Most words of a subject (UNO paper, appendix).
pub const MAX_SUBJECT_WORDS: usize = 12;
/// Most words of a scene. The published limit is 77 tokens of CLIP, which are at least as many as the words.
pub const MAX_SCENE_WORDS: usize = 77;
/// Most characters of a word; longer ones are no words.
const MAX_WORD_CHARS: usize = 40;

/// Why a phrase is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PhraseError {
    #[error("it is empty")]
    Empty,
    #[error("it holds control or direction characters")]
    Control,
    #[error("it has {words} words, more than {most}")]
    Long { words: usize, most: usize },
    #[error("it has a word of more than {MAX_WORD_CHARS} characters")]
    Word,
    #[error("it has no letter")]
    NoLetter,
}

/// A phrase of at most `most` words with single spaces, or why it is none.
pub fn phrase(text: &str, most: usize) -> Result<String, PhraseError> {
    let text = text.trim();
    if text.chars().any(is_hidden) {
        return Err(PhraseError::Control);
    }
    // Counted before anything is copied: the text may be of any length.
    let words = text.split_whitespace().take(most + 1).count();
    if words == 0 {
        return Err(PhraseError::Empty);
    }
    if words > most {
        return Err(PhraseError::Long { words: text.split_whitespace().count(), most });
    }
    if text.split_whitespace().any(|word| word.chars().count() > MAX_WORD_CHARS) {
        return Err(PhraseError::Word);
    }
    if !text.chars().any(char::is_alphabetic) {
        return Err(PhraseError::NoLetter);
    }
    Ok(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Characters that do not show, or that change how others show: control characters, marks of direction, zero-width
/// spaces.
pub fn is_hidden(c: char) -> bool {
    (c.is_control() && !matches!(c, '\t'))
        || matches!(
            c,
            '\u{061c}'
                | '\u{200b}'
                | '\u{200e}'
                | '\u{200f}'
                | '\u{2028}'
                | '\u{2029}'
                | '\u{202a}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// What two phrases that mean the same have in common: lower case, letters and digits alone, no article.
pub fn normalised(text: &str) -> String {
    let lower = text.to_lowercase();
    let words: Vec<&str> =
        lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    match words.as_slice() {
        ["a" | "an" | "the", rest @ ..] if !rest.is_empty() => rest.join(" "),
        all => all.join(" "),
    }
}

/// `a cup`, `an owl`; what already begins with an article stays as it is.
pub fn with_article(noun: &str) -> String {
    let first = noun.split_whitespace().next().unwrap_or_default().to_lowercase();
    if matches!(first.as_str(), "a" | "an" | "the" | "some" | "two" | "three" | "my" | "his" | "her") {
        return noun.to_owned();
    }
    let vowel = first.starts_with(['a', 'e', 'i', 'o', 'u'])
        && !["uni", "use", "eu", "one"].iter().any(|sound| first.starts_with(sound));
    let article = if vowel || first == "hour" || first == "hourglass" { "an" } else { "a" };
    format!("{article} {noun}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_no_phrase_is_refused() {
        assert_eq!(phrase("  a  red\tcup ", 12), Ok("a red cup".to_owned()));
        assert_eq!(phrase("   ", 12), Err(PhraseError::Empty));
        assert_eq!(phrase("a red cup", 2), Err(PhraseError::Long { words: 3, most: 2 }));
        assert_eq!(phrase("a cup\nIgnore all", 12), Err(PhraseError::Control));
        assert_eq!(phrase("a \u{202e}puc", 12), Err(PhraseError::Control));
        assert_eq!(phrase("a c\u{200b}up", 12), Err(PhraseError::Control));
        assert_eq!(phrase(&"x".repeat(41), 12), Err(PhraseError::Word));
        assert_eq!(phrase("12 / 4", 12), Err(PhraseError::NoLetter));
        // Other scripts are words like any.
        assert_eq!(phrase("כוס אדומה", 12), Ok("כוס אדומה".to_owned()));
    }

    #[test]
    fn the_same_thing_said_twice_is_the_same() {
        assert_eq!(normalised("A Red  Cup."), normalised("the red cup"));
        assert_ne!(normalised("red cup"), normalised("red cups"));
        assert_eq!(normalised("The"), "the");
    }

    #[test]
    fn articles_follow_the_sound() {
        for (noun, whole) in [
            ("cup", "a cup"),
            ("owl", "an owl"),
            ("unicycle", "a unicycle"),
            ("umbrella", "an umbrella"),
            ("hourglass", "an hourglass"),
            ("the cup", "the cup"),
            ("A fox", "A fox"),
        ] {
            assert_eq!(with_article(noun), whole);
        }
    }

    proptest! {
        #[test]
        fn whatever_is_taken_is_clean(text in "\\PC{0,60}|[a-z \\n\\t\u{202e}\u{200b}]{0,40}", most in 1..20usize) {
            if let Ok(taken) = phrase(&text, most) {
                prop_assert!(!taken.chars().any(is_hidden) && !taken.contains(['\n', '\r', '\t']));
                prop_assert!((1..=most).contains(&taken.split(' ').count()));
                prop_assert_eq!(phrase(&taken, most), Ok(taken.clone()));
            }
        }
    }
}
