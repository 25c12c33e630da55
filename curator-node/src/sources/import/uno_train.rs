//! Records as UNO's own training reads them (upstream: `uno/dataset/uno.py`, and `filter_uno_1m_dataset.py`, which writes them):
//! a prompt, the pictures of its subjects, and the picture that it describes, by paths from the label file's folder.

use serde::Deserialize;

/// One record; other fields are left unread.
#[derive(Debug, Deserialize, PartialEq, Eq)]
pub struct TrainRecord {
    pub prompt: String,
    /// The published loader takes either spelling.
    #[serde(alias = "image_path")]
    pub image_paths: Paths,
    pub image_tgt_path: String,
}

/// One path or several.
#[derive(Debug, Deserialize, PartialEq, Eq)]
#[serde(untagged)]
pub enum Paths {
    One(String),
    Several(Vec<String>),
}

impl Paths {
    pub fn as_slice(&self) -> &[String] {
        match self {
            Paths::One(path) => std::slice::from_ref(path),
            Paths::Several(paths) => paths,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_are_read_and_a_missing_field_is_named() {
        let read = |text: &str| serde_json::from_str::<TrainRecord>(text);
        for (text, paths) in [
            (
                r#"{"prompt": "p", "image_paths": ["a", "b"], "image_tgt_path": "t", "more": 1}"#,
                &["a", "b"][..],
            ),
            (r#"{"prompt": "p", "image_path": "a", "image_tgt_path": "t"}"#, &["a"]),
        ] {
            assert_eq!(read(text).expect("a record").image_paths.as_slice(), paths);
        }
        for (text, says) in [
            (r#"{"image_paths": ["a"], "image_tgt_path": "t"}"#, "prompt"),
            (r#"{"prompt": "p", "image_tgt_path": "t"}"#, "image_paths"),
            (r#"{"prompt": "p", "image_paths": ["a"]}"#, "image_tgt_path"),
        ] {
            let error = read(text).expect_err("it lacks a field").to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
