//! Content as the registry knows it: by size and SHA-256.

use sha2::{Digest as _, Sha256};

/// What is known of an object's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    pub size_bytes: u64,
    /// 64 lower-case hexadecimal digits.
    pub sha256: String,
}

impl Content {
    pub fn of(bytes: &[u8]) -> Content {
        Content { size_bytes: bytes.len() as u64, sha256: sha256_hex(bytes) }
    }
}

/// 64 lower-case hexadecimal digits.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The SHA-256 of several parts, each with its length, so that no two lists of them are alike.
pub fn of_parts(parts: impl IntoIterator<Item = impl AsRef<[u8]>>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.as_ref().len() as u64).to_le_bytes());
        hash.update(part.as_ref());
    }
    hex(&hash.finalize())
}

/// What a language model's records are kept under: 16 digits that stand for its address, as specs write it, and its name.
pub fn of_model(url: &str, model: &str) -> String {
    let digest = of_parts([url.trim_end_matches('/'), model]);
    digest.get(..16).unwrap_or(&digest).to_owned()
}

/// Two lower-case hexadecimal digits a byte.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
