//! Which subjects training sees, and which are kept for evaluation.

use sha2::{Digest, Sha256};

/// A number that depends on `text` alone, on every machine: the first 8 bytes of its SHA-256, big-endian.
pub fn stable_hash(text: &str) -> u64 {
    Sha256::digest(text.as_bytes()).iter().take(8).fold(0, |number, byte| (number << 8) | u64::from(*byte))
}

/// Whether a subject is kept out of training. Depends on its id and `one_in` alone; 0 keeps out none.
pub fn is_held_out(id: &str, one_in: u32) -> bool {
    one_in > 0 && stable_hash(id).is_multiple_of(u64::from(one_in))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stable_hash_is_the_start_of_sha256() {
        // sha256("abc") starts with ba7816bf8f01cfea.
        assert_eq!(stable_hash("abc"), 0xba78_16bf_8f01_cfea);
    }

    #[test]
    fn one_in_n_is_held_out() {
        let held_out = (0..1000).filter(|n| is_held_out(&format!("subject-{n}"), 5)).count();
        assert!((150..250).contains(&held_out), "{held_out}");
        assert!(!is_held_out("anything", 0) && is_held_out("anything", 1));
    }
}
