//! Reading pair shards (WebDataset tars) as files of pictures and facts, without decoding the pictures.

use std::collections::BTreeMap;
use std::io::Read as _;

use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// Size of one entry beyond which a shard is refused.
const MAX_ENTRY_BYTES: u64 = 512 << 20;
/// References of a pair; the job spec allows no more.
const MAX_REFERENCES: usize = 8;

/// One pair as it is stored.
#[derive(Clone, Debug)]
pub struct Stored {
    pub facts: Facts,
    /// Picture files.
    pub target: Vec<u8>,
    pub references: Vec<Vec<u8>>,
}

/// What `k.json` says beside the pictures.
#[derive(Clone, Debug, Deserialize)]
pub struct Facts {
    #[serde(default)]
    pub prompt: String,
    #[serde(default)]
    pub reference_words: Vec<String>,
    #[serde(default)]
    pub scores: BTreeMap<String, f64>,
    #[serde(default)]
    pub provenance: Value,
}

impl Facts {
    /// Why the candidate was turned down; empty for an accepted one.
    pub fn rejected(&self) -> &str {
        self.provenance.get("rejected").and_then(Value::as_str).unwrap_or_default()
    }
}

/// Whether the bytes are those that the registry names.
pub fn is_registered(bytes: &[u8], sha256: &str) -> bool {
    let digest: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    digest == sha256
}

/// The pairs of a tar, in their order.
pub fn read(tar: &[u8]) -> Result<Vec<Stored>, String> {
    let mut pairs = Vec::new();
    let (mut target, mut references) = (None, Vec::new());
    let mut archive = tar::Archive::new(tar);
    for entry in archive.entries().map_err(|error| error.to_string())? {
        let mut entry = entry.map_err(|error| error.to_string())?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let wrong = |what: &str| format!("entry {name}: {what}");
        if entry.size() > MAX_ENTRY_BYTES {
            return Err(wrong("it is too large"));
        }
        let mut content = Vec::new();
        entry.read_to_end(&mut content).map_err(|error| wrong(&error.to_string()))?;
        match name.split_once('.').map_or("", |(_, suffix)| suffix) {
            "target.png" => target = Some(content),
            "json" => {
                let facts = serde_json::from_slice(&content).map_err(|error| wrong(&error.to_string()))?;
                let target = target.take().ok_or_else(|| wrong("its pair has no target"))?;
                pairs.push(Stored { facts, target, references: std::mem::take(&mut references) });
            }
            suffix if suffix.starts_with("ref") && references.len() < MAX_REFERENCES => {
                references.push(content)
            }
            _ => return Err(wrong("it is not expected here")),
        }
    }
    Ok(pairs)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A tar with these entries.
    pub fn tar_of(entries: &[(String, Vec<u8>)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in entries {
            let mut header = tar::Header::new_ustar();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, content.as_slice()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn pairs_are_read_and_what_is_wrong_is_named() {
        let facts = br#"{"prompt":"a cup","scores":{"judge":3.5},"provenance":{"rejected":"judge_low"}}"#;
        let entries = [
            ("000000.target.png".to_owned(), b"t".to_vec()),
            ("000000.ref0.png".to_owned(), b"r".to_vec()),
            ("000000.json".to_owned(), facts.to_vec()),
        ];
        let pairs = read(&tar_of(&entries)).unwrap();
        assert_eq!((pairs.len(), pairs[0].facts.rejected(), pairs[0].references.len()), (1, "judge_low", 1));
        let error = read(&tar_of(&entries[1..])).unwrap_err();
        assert!(error.contains("000000.json") && error.contains("no target"), "{error}");
        let error = read(&tar_of(&[("000000.json".to_owned(), b"7".to_vec())])).unwrap_err();
        assert!(error.contains("000000.json"), "{error}");
        assert!(read(b"no tar at all").is_err());
    }
}
