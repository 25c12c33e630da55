//! Digests of files, as nodes state them.

use crate::error::RequestError;

/// A SHA-256 in the form in which it is registered.
pub(crate) fn check_sha256(field: &'static str, text: &str) -> Result<(), RequestError> {
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if text.len() == 64 && text.bytes().all(hex) {
        return Ok(());
    }
    Err(RequestError::invalid(field, "must be 64 lower-case hexadecimal digits"))
}
