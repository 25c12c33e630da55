//! Names and numbers that must not be mixed up. Text ids are checked when they are made, so a value of one of these
//! types is safe in a store key, a file name and a log line.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher, RandomState};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A text that is not a valid id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} must be 1 to {max_chars} characters of {alphabet}")]
pub struct InvalidId {
    /// What the id names, e.g. `node id`.
    pub what: &'static str,
    pub max_chars: usize,
    pub alphabet: &'static str,
}

/// The text of an id. Shared, and its hash is known: a decision names the same few thousand over and over.
#[derive(Clone)]
struct SharedText {
    hash: u64,
    text: Arc<str>,
}

/// Keys of the hashes, of this process alone: whoever chooses names cannot choose such as fall together.
static KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::new);

impl SharedText {
    fn new(text: &str) -> Self {
        Self { hash: KEYS.hash_one(text), text: text.into() }
    }
}

impl PartialEq for SharedText {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && (Arc::ptr_eq(&self.text, &other.text) || self.text == other.text)
    }
}

impl Eq for SharedText {}

impl PartialOrd for SharedText {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for SharedText {
    fn cmp(&self, other: &Self) -> Ordering {
        if Arc::ptr_eq(&self.text, &other.text) { Ordering::Equal } else { self.text.cmp(&other.text) }
    }
}

impl Hash for SharedText {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// Hashes ids, and what is made of ids and numbers, by the hashes that the ids bring along.
#[derive(Clone, Copy, Debug, Default)]
pub struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, number: u64) {
        // The golden ratio: odd, so that nothing of the random bits is lost.
        self.0 = (self.0.rotate_left(5) ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// For maps by ids.
pub type IdHashes = BuildHasherDefault<IdHasher>;
/// Finds by id. Its order is another in every process: nothing that is decided may follow it.
#[expect(clippy::disallowed_types, reason = "to find things by; who goes through it sorts, or adds up")]
pub type IdMap<K, V> = std::collections::HashMap<K, V, IdHashes>;
/// The same of ids alone.
#[expect(clippy::disallowed_types, reason = "to ask whether something is in it")]
pub type IdSet<K> = std::collections::HashSet<K, IdHashes>;

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $max:literal, $alphabet:literal, $allowed:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(SharedText);

        impl $name {
            /// Checks length and alphabet.
            pub fn parse(text: &str) -> Result<Self, InvalidId> {
                let allowed: fn(u8) -> bool = $allowed;
                // A name of dots alone would walk out of its folder.
                let dots_alone = text.bytes().all(|byte| byte == b'.');
                if text.is_empty() || text.len() > $max || dots_alone || !text.bytes().all(allowed) {
                    return Err(InvalidId { what: $what, max_chars: $max, alphabet: $alphabet });
                }
                Ok(Self(SharedText::new(text)))
            }

            pub fn as_str(&self) -> &str {
                &self.0.text
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_tuple(stringify!($name)).field(&self.0.text).finish()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0.text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, InvalidId> {
                Self::parse(&text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.as_str().to_owned()
            }
        }
    };
}

fn lower_digit_dash(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'
}

text_id!(
    /// A job, e.g. `uno-7f3kq2`.
    JobId, "job id", 64, "[a-z0-9-]", lower_digit_dash
);
text_id!(
    /// A stage within its job.
    StageName, "stage name", 40, "[a-z0-9-]", lower_digit_dash
);
text_id!(
    /// Whom a job belongs to: the spec's `metadata.tenant`.
    Tenant, "tenant", 40, "[a-z0-9-]", lower_digit_dash
);
text_id!(
    /// A node, the same over restarts of its process.
    NodeId, "node id", 63, "[a-z0-9.-]", |byte| lower_digit_dash(byte) || byte == b'.'
);
text_id!(
    /// Chosen by whoever submits; the same one submits once.
    RequestId, "request id", 128, "[A-Za-z0-9._-]",
    |byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')
);
text_id!(
    /// One run of a node's process: random, new at each start.
    Incarnation, "incarnation", 64, "[A-Za-z0-9._-]",
    |byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')
);

impl JobId {
    /// Id of the job that `tenant` submits by `request` under `name`. A function of its arguments, so that a submit whose
    /// outcome is unknown gives the same id when it is tried again; `salt` counts up past ids that are taken.
    pub fn derive(name: &str, tenant: &str, request: &RequestId, salt: u32) -> Result<Self, InvalidId> {
        const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
        const SUFFIX_CHARS: u32 = 6;
        let mut hash = fnv1a(tenant.as_bytes(), 0xcbf2_9ce4_8422_2325);
        hash = fnv1a(b"/", hash);
        hash = fnv1a(request.as_str().as_bytes(), hash);
        hash = mix(fnv1a(&salt.to_le_bytes(), hash));
        let suffix: String = (0..SUFFIX_CHARS)
            .map(|i| char::from(ALPHABET[usize::try_from((hash >> (5 * i)) & 31).unwrap_or(0)]))
            .collect();
        Self::parse(&format!("{name}-{suffix}"))
    }
}

fn fnv1a(bytes: &[u8], start: u64) -> u64 {
    bytes.iter().fold(start, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// A hash of texts in their order, the same on every machine and in every version.
pub(crate) fn spread_hash(texts: &[&str]) -> u64 {
    let hash = |hash, text: &&str| fnv1a(b"/", fnv1a(text.as_bytes(), hash));
    mix(texts.iter().fold(0xcbf2_9ce4_8422_2325, hash))
}

/// Spreads every input bit over the output (the finalizer of splitmix64).
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Counts the attempts to train a stage. It only grows, is raised in the store before use, and whoever holds an older
/// one changes nothing any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Generation(pub u64);

impl Generation {
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Milliseconds since the Unix epoch: wall time where people are shown it, in records above all; where something is decided,
/// a time that began as that and cannot jump. Only times of the same controller are compared; never used for safety, which
/// rests on generations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Timestamp(pub u64);

impl Timestamp {
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }

    /// Time from `earlier` to this; zero if the clock went back.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// A stage of a job.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StageRef {
    pub job: JobId,
    pub stage: StageName,
}

impl fmt::Display for StageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.job, self.stage)
    }
}

/// One attempt to train a stage.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttemptRef {
    pub job: JobId,
    pub stage: StageName,
    pub generation: Generation,
}

impl AttemptRef {
    pub fn stage_ref(&self) -> StageRef {
        StageRef { job: self.job.clone(), stage: self.stage.clone() }
    }
}

impl fmt::Display for AttemptRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} generation {}", self.job, self.stage, self.generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_refuse_what_could_leave_its_place() {
        for bad in ["", "..", ".", "a/b", "a b", "A", "ü", "a\n", &"a".repeat(64)] {
            assert!(NodeId::parse(bad).is_err(), "{bad:?}");
        }
        assert!(NodeId::parse("gpu-1.zone-a").is_ok());
        assert!(RequestId::parse("..").is_err());
        assert!(JobId::parse("uno-7f3kq2").is_ok());
    }

    #[test]
    fn a_derived_id_depends_on_tenant_request_and_salt_alone() {
        let request = RequestId::parse("r-1").expect("valid");
        let other = RequestId::parse("r-2").expect("valid");
        let id = JobId::derive("uno", "a", &request, 0).expect("valid");
        assert_eq!(id, JobId::derive("uno", "a", &request, 0).expect("valid"));
        assert_ne!(id, JobId::derive("uno", "a", &other, 0).expect("valid"));
        assert_ne!(id, JobId::derive("uno", "a", &request, 1).expect("valid"));
        assert_ne!(id, JobId::derive("uno", "b", &request, 0).expect("valid"));
        assert!(id.as_str().starts_with("uno-"));
    }

    #[test]
    fn a_clock_that_goes_back_gives_zero() {
        assert_eq!(Timestamp(5).since(Timestamp(9)), Duration::ZERO);
    }
}
