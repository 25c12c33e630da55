//! Which subjects training sees, and which are kept for evaluation.

use crate::index::Entry;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fmt;

/// A number that depends on `text` alone, on every machine: the first 8 bytes of its SHA-256, big-endian.
pub fn stable_hash(text: &str) -> u64 {
    Sha256::digest(text.as_bytes()).iter().take(8).fold(0, |number, byte| (number << 8) | u64::from(*byte))
}

/// Whether a subject is kept out of training. Depends on its id and `one_in` alone; 0 keeps out none.
pub fn is_held_out(id: &str, one_in: u32) -> bool {
    one_in > 0 && stable_hash(id).is_multiple_of(u64::from(one_in))
}

/// Which subjects of a library are kept out of training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HoldOut<'a> {
    /// Ids or names.
    pub named: &'a [String],
    /// Every n-th by stable hash as well; 0 for none.
    pub one_in: u32,
}

/// Numbers of the entries for training, and of those that are held out; or the names that no entry has, with the nearest
/// that one has.
pub(crate) fn split(
    entries: &[Entry],
    hold_out: HoldOut<'_>,
) -> Result<(Vec<usize>, Vec<usize>), Vec<UnknownName>> {
    let known: BTreeSet<&str> =
        entries.iter().flat_map(|entry| [&entry.id, &entry.name, &entry.words]).map(String::as_str).collect();
    let unknown: Vec<UnknownName> = hold_out
        .named
        .iter()
        .filter(|name| !known.contains(name.as_str()))
        .map(|name| UnknownName { name: name.clone(), nearest: nearest(name, &known).map(str::to_owned) })
        .collect();
    if !unknown.is_empty() {
        return Err(unknown);
    }
    // Each name is looked up, so that long lists of names and large libraries go together.
    let named: BTreeSet<&str> = hold_out.named.iter().map(String::as_str).collect();
    let is_named = |entry: &Entry| {
        [&entry.id, &entry.name, &entry.words].into_iter().any(|called| named.contains(called.as_str()))
    };
    Ok((0..entries.len()).partition(|n| {
        let entry = &entries[*n];
        !is_named(entry) && !is_held_out(&entry.id, hold_out.one_in)
    }))
}

/// A name that no subject of a library has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownName {
    pub name: String,
    /// The one that was perhaps meant.
    pub nearest: Option<String>,
}

impl fmt::Display for UnknownName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.name)?;
        match &self.nearest {
            Some(nearest) => write!(f, " (did you mean `{nearest}`?)"),
            None => Ok(()),
        }
    }
}

fn nearest<'a>(name: &str, known: &BTreeSet<&'a str>) -> Option<&'a str> {
    // Long strangers are not worth the comparison.
    if name.len() > 64 {
        return None;
    }
    let plain = |text: &str| text.to_lowercase().replace(['-', '_', ' '], "");
    let wanted = plain(name);
    known
        .iter()
        .filter(|candidate| candidate.len() <= 2 * name.len() + 4)
        .map(|candidate| (strsim::damerau_levenshtein(&wanted, &plain(candidate)), *candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 4)
        .min()
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries() -> Vec<Entry> {
        let entry = |id: &str, name: &str, words: &str| Entry {
            id: id.into(),
            name: name.into(),
            category: String::new(),
            files: vec!["f.png".into()],
            words: words.into(),
        };
        vec![
            entry("fox-1", "fox", "a red fox"),
            entry("fox-2", "fox", "a grey fox"),
            entry("mug", "blue mug", "a blue mug"),
        ]
    }

    #[test]
    fn subjects_are_held_out_by_id_name_and_words() {
        let by = |names: &[&str]| {
            let named: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            split(&entries(), HoldOut { named: &named, one_in: 0 }).expect("they are there").1
        };
        assert_eq!(by(&["fox-2"]), [1]);
        assert_eq!(by(&["fox"]), [0, 1]);
        assert_eq!(by(&["a blue mug", "mug"]), [2]);
        assert!(by(&[]).is_empty());
        let (training, held_out) = split(&entries(), HoldOut { named: &[], one_in: 1 }).expect("no names");
        assert!(training.is_empty() && held_out == [0, 1, 2]);
    }

    #[test]
    fn unknown_names_are_all_told_with_the_nearest() {
        let named = ["fox", "Blue Mugg", "dragon"].map(str::to_owned);
        let unknown = split(&entries(), HoldOut { named: &named, one_in: 0 }).expect_err("two are unknown");
        let told: Vec<String> = unknown.iter().map(ToString::to_string).collect();
        assert_eq!(told, ["`Blue Mugg` (did you mean `blue mug`?)", "`dragon`"]);
    }

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
