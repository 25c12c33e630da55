//! What a caption names besides its first subject.

/// Words that link one thing to the next, and are part of neither.
const LINKS: &[&str] = &[
    "above",
    "across",
    "against",
    "along",
    "amid",
    "among",
    "and",
    "around",
    "at",
    "atop",
    "before",
    "behind",
    "below",
    "beneath",
    "beside",
    "between",
    "by",
    "during",
    "facing",
    "from",
    "holding",
    "in",
    "inside",
    "into",
    "is",
    "near",
    "next",
    "of",
    "on",
    "onto",
    "over",
    "placed",
    "resting",
    "sitting",
    "standing",
    "surrounded",
    "to",
    "together",
    "under",
    "upon",
    "wearing",
    "while",
    "with",
    "within",
];
/// Words that a phrase does not begin with.
const OPENINGS: &[&str] =
    &["a", "an", "the", "some", "its", "his", "her", "their", "another", "several", "two", "three"];
/// Longest phrase, words: a detector's query is short.
const MAX_WORDS: usize = 6;
/// Most phrases of one caption.
const MAX_PHRASES: usize = 8;

/// The things that a caption names, in its order and its own words, without articles; not the one that `first` names.
///
/// Captions are cut at punctuation and at linking words. That is crude, and enough: what is no thing, the detector does not
/// find.
pub fn phrases(caption: &str, first: &str) -> Vec<String> {
    let known: Vec<String> = words(first).filter(|word| !OPENINGS.contains(&word.as_str())).collect();
    let mut found: Vec<String> = Vec::new();
    for part in caption.split(|c: char| !(c.is_alphanumeric() || c == ' ' || c == '-' || c == '\'')) {
        let mut phrase: Vec<String> = Vec::new();
        // The empty word ends the last phrase.
        for word in words(part).chain(std::iter::once(String::new())) {
            if word.is_empty() || LINKS.contains(&word.as_str()) {
                let taken = std::mem::take(&mut phrase);
                let is_first = !known.is_empty() && taken.last() == known.last();
                let text = taken.join(" ");
                if !taken.is_empty() && taken.len() <= MAX_WORDS && !is_first && !found.contains(&text) {
                    found.push(text);
                }
            } else if !(phrase.is_empty() && OPENINGS.contains(&word.as_str())) {
                phrase.push(word);
            }
        }
    }
    found.truncate(MAX_PHRASES);
    found
}

fn words(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split(|c: char| !(c.is_alphanumeric() || c == '-' || c == '\''))
        .filter(|word| word.chars().any(char::is_alphanumeric))
        .map(str::to_lowercase)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn things_are_told_apart_by_what_links_them() {
        assert_eq!(
            phrases("A red teapot on a wooden table, beside the blue cup", "a red teapot"),
            ["wooden table", "blue cup"]
        );
        assert_eq!(phrases("the teapot with an old clock", "a red teapot"), ["old clock"]);
        assert_eq!(phrases("a cup and a cup", "a dog"), ["cup"]);
    }

    #[test]
    fn nothing_that_comes_from_outside_breaks_it() {
        assert!(phrases("", "").is_empty());
        assert!(phrases("\u{202e}\0 -- ''", "x").is_empty());
        let long = "word ".repeat(100_000);
        assert!(phrases(&long, "x").is_empty());
        let many: String = (0..100).map(|n| format!("thing{n}, ")).collect();
        assert_eq!(phrases(&many, "x").len(), MAX_PHRASES);
    }
}
