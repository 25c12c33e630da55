//! A text from outside, fit for a log line.

/// The beginning of a text from outside, fit for a log line.
pub fn excerpt(text: &str) -> String {
    let clean: String = text.chars().map(|c| if crate::phrase::is_hidden(c) { ' ' } else { c }).collect();
    let clean = clean.split_whitespace().collect::<Vec<_>>().join(" ");
    clean.chars().take(200).collect()
}
