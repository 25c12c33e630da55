//! Names in the files of access.

/// `[a-z0-9-]`, 1 to 40 characters.
pub(super) fn check_name(text: &str) -> Result<String, ()> {
    let is_right = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let is_name = !text.is_empty() && text.len() <= 40 && text.chars().all(is_right);
    is_name.then(|| text.to_owned()).ok_or(())
}
