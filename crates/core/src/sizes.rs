//! Sizes for people.

/// Bytes for people, e.g. `12.30 GB`.
#[allow(clippy::cast_precision_loss)] // two digits are shown
pub fn gigabytes(bytes: u64) -> String {
    format!("{:.2} GB", bytes as f64 / 1e9)
}
