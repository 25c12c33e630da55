//! Keys that the operator of a curator has set up, by name.
//!
//! A spec comes from a tenant and names a key, never an environment variable or a file: otherwise it could have any
//! secret of the machine sent to any address. A key goes to the one address that the operator has set up with it.
//!
//! | environment variable | what it holds |
//! |---|---|
//! | `CRESCENDO_ENDPOINT_<NAME>_URL` | the base that the key may be sent to, as specs write it |
//! | `CRESCENDO_ENDPOINT_<NAME>_KEY` | the key |
//! | `CRESCENDO_ENDPOINT_<NAME>_KEY_FILE` | or a file that holds it, read when a stage is opened |
//!
//! `<NAME>` is the name in capitals, with `_` for `-`.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read as _;

const PREFIX: &str = "CRESCENDO_ENDPOINT_";
/// Longest key, bytes.
const MAX_KEY_BYTES: u64 = 8192;

pub use crescendo_core::secret::Secret;

/// Why there is no key.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("this curator has no key `{name}`: {variable} is not set")]
    Unknown { name: String, variable: String },
    #[error("key `{name}` is not for {url}: {variable} names another address")]
    Address { name: String, url: String, variable: String },
    #[error("key `{name}`: the file of {variable} cannot be read: {reason}")]
    File { name: String, variable: String, reason: String },
    #[error("key `{name}` is empty, too long or not one line")]
    Form { name: String },
}

/// All keys, by environment variable.
#[derive(Clone, Default)]
pub struct Keys {
    variables: BTreeMap<String, String>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.variables.keys()).finish()
    }
}

impl Keys {
    /// Takes what is about keys from an environment.
    pub fn from_variables(variables: impl IntoIterator<Item = (String, String)>) -> Keys {
        Keys { variables: variables.into_iter().filter(|(name, _)| name.starts_with(PREFIX)).collect() }
    }

    /// The key `name`, if it is for `url`.
    pub fn find(&self, name: &str, url: &str) -> Result<Secret, KeyError> {
        let variable = |what: &str| format!("{PREFIX}{}_{what}", name.to_uppercase().replace('-', "_"));
        let value = |what: &str| self.variables.get(&variable(what));
        let same = |a: &str, b: &str| a.trim_end_matches('/') == b.trim_end_matches('/');
        match value("URL") {
            Some(allowed) if same(allowed, url) => {}
            Some(_) => {
                return Err(KeyError::Address {
                    name: name.into(),
                    url: url.into(),
                    variable: variable("URL"),
                });
            }
            None => return Err(KeyError::Unknown { name: name.into(), variable: variable("URL") }),
        }
        let key = match (value("KEY"), value("KEY_FILE")) {
            (Some(key), _) => key.clone(),
            (None, Some(path)) => read(path).map_err(|error| KeyError::File {
                name: name.into(),
                variable: variable("KEY_FILE"),
                reason: error.to_string(),
            })?,
            (None, None) => {
                return Err(KeyError::Unknown { name: name.into(), variable: variable("KEY") });
            }
        };
        let key = key.trim();
        if key.is_empty() || key.len() as u64 > MAX_KEY_BYTES || key.chars().any(char::is_control) {
            return Err(KeyError::Form { name: name.into() });
        }
        Ok(Secret::new(key))
    }
}

fn read(path: &str) -> std::io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_KEY_BYTES + 2).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_goes_to_its_own_address_alone() {
        let folder = tempfile::tempdir().expect("make a folder");
        let file = folder.path().join("key");
        std::fs::write(&file, "sk-file\n").expect("write");
        let keys = Keys::from_variables(
            [
                ("CRESCENDO_ENDPOINT_VLM_URL", "https://host/v1"),
                ("CRESCENDO_ENDPOINT_VLM_KEY", "sk-1"),
                ("CRESCENDO_ENDPOINT_MY_LLM_URL", "https://other/v1/"),
                ("CRESCENDO_ENDPOINT_MY_LLM_KEY_FILE", file.to_str().expect("a plain path")),
                ("CRESCENDO_ENDPOINT_BAD_URL", "https://bad"),
                ("CRESCENDO_ENDPOINT_BAD_KEY", "a\nb"),
                ("CRESCENDO_ENDPOINT_GONE_URL", "https://gone"),
                ("CRESCENDO_ENDPOINT_GONE_KEY_FILE", "/no/such/file"),
                ("HOME", "/root"),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned())),
        );
        assert_eq!(keys.find("vlm", "https://host/v1/"), Ok(Secret::new("sk-1")));
        assert_eq!(keys.find("my-llm", "https://other/v1"), Ok(Secret::new("sk-file")));
        let error = |name, url| keys.find(name, url).expect_err("no key").to_string();
        assert_eq!(
            error("vlm", "https://thief/v1"),
            "key `vlm` is not for https://thief/v1: CRESCENDO_ENDPOINT_VLM_URL names another address"
        );
        assert_eq!(
            error("x", "https://h"),
            "this curator has no key `x`: CRESCENDO_ENDPOINT_X_URL is not set"
        );
        assert_eq!(error("bad", "https://bad"), "key `bad` is empty, too long or not one line");
        assert!(error("gone", "https://gone").contains("cannot be read"));
        let shown = format!("{keys:?} {:?}", keys.find("vlm", "https://host/v1"));
        assert!(!shown.contains("sk-1") && !shown.contains("HOME"), "{shown}");
        assert_eq!(Secret::new("sk-1").removed_from("bad key sk-1!"), "bad key [redacted]!");
    }
}
