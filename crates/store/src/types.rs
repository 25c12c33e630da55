//! The values that go in and out of a store.

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::error::StoreError;
use crate::lease::{Fence, Leadership, Lease, LeaseId};
pub use crate::revision::Revision;

/// Longest key, in bytes, without the store's prefix.
pub const MAX_KEY_BYTES: usize = 512;
/// Largest value, in bytes.
pub const MAX_VALUE_BYTES: usize = 1 << 20;
/// Largest transaction, in bytes of keys and values together: below etcd's default request limit of 1.5 MiB.
pub const MAX_TXN_BYTES: usize = 1_400_000;
/// Most operations, and most preconditions, in one transaction: etcd's default limit is 128, and leadership takes one.
pub const MAX_TXN_OPS: usize = 120;
/// Most records that one page holds, whatever the caller asks for.
pub const MAX_PAGE_ITEMS: usize = 1000;

/// A record as read, with the revision of its last write: the one to name in [`Expect::ModRevision`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// The key, without the store's prefix.
    pub key: String,
    /// The bytes written last.
    pub value: Bytes,
    /// When they were written.
    pub mod_revision: Revision,
    /// The lease that the record dies with, if any.
    pub lease: Option<LeaseId>,
}

/// A part of a listing, in key order, all of it as it was at `revision`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The records.
    pub items: Vec<Versioned>,
    /// The last key of this page when there are more: pass it as `page_after` for the next one.
    pub next: Option<String>,
    /// The store's revision that this page shows. Later pages may show later revisions.
    pub revision: Revision,
}

/// Every record under a prefix, in key order, all of them as they were at `revision`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The records.
    pub items: Vec<Versioned>,
    /// The store's revision that they show. A watch after it misses nothing.
    pub revision: Revision,
}

/// What must hold of a key for a transaction to be applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Precondition {
    /// The key, without the store's prefix.
    pub key: String,
    /// What must hold of it.
    pub expect: Expect,
}

/// The state that a precondition expects of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// No such record.
    Absent,
    /// A record, whatever it holds.
    Exists,
    /// A record whose last write was at this revision.
    ModRevision(Revision),
}

/// One write of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Create or replace a record.
    Put {
        /// The key, without the store's prefix.
        key: String,
        /// The bytes to hold.
        value: Bytes,
        /// The lease that the record dies with, if any.
        lease: Option<LeaseId>,
    },
    /// Remove a record; nothing happens when there is none.
    Delete {
        /// The key, without the store's prefix.
        key: String,
    },
}

impl Op {
    /// The key that it writes.
    pub fn key(&self) -> &str {
        match self {
            Op::Put { key, .. } | Op::Delete { key } => key,
        }
    }
}

/// A transaction: all of its writes at one revision, or none.
///
/// ```
/// use crescendo_store::{Revision, Txn};
///
/// let seen = Revision(7);
/// let txn = Txn::new()
///     .at_revision("jobs/a", seen)
///     .absent("attempts/a/1")
///     .put("jobs/a", "placing")
///     .put("attempts/a/1", "generation 1");
/// assert_eq!(txn.ops.len(), 2);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// What must hold; checked in this order, the first failure is reported.
    pub preconditions: Vec<Precondition>,
    /// What is written. A key may be written once.
    pub ops: Vec<Op>,
    /// The leadership that must still be held.
    pub fence: Option<Fence>,
}

impl Txn {
    /// A transaction that asks for nothing and writes nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds: there is no record at `key`.
    pub fn absent(self, key: impl Into<String>) -> Self {
        self.expect(key, Expect::Absent)
    }

    /// Adds: there is a record at `key`.
    pub fn exists(self, key: impl Into<String>) -> Self {
        self.expect(key, Expect::Exists)
    }

    /// Adds: the last write of `key` was at `revision`.
    pub fn at_revision(self, key: impl Into<String>, revision: Revision) -> Self {
        self.expect(key, Expect::ModRevision(revision))
    }

    /// Adds a precondition.
    pub fn expect(mut self, key: impl Into<String>, expect: Expect) -> Self {
        self.preconditions.push(Precondition { key: key.into(), expect });
        self
    }

    /// Adds: write `value` at `key`.
    pub fn put(mut self, key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.ops.push(Op::Put { key: key.into(), value: value.into(), lease: None });
        self
    }

    /// Adds: write `value` at `key`, to be removed when the lease ends.
    pub fn put_leased(mut self, key: impl Into<String>, value: impl Into<Bytes>, lease: &Lease) -> Self {
        self.ops.push(Op::Put { key: key.into(), value: value.into(), lease: Some(lease.id()) });
        self
    }

    /// Adds: remove the record at `key`.
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.ops.push(Op::Delete { key: key.into() });
        self
    }

    /// Adds: apply only while `leadership` is still ours, else fail with [`StoreError::NotLeader`].
    pub fn led_by(mut self, leadership: &Leadership) -> Self {
        self.fence = Some(leadership.fence().clone());
        self
    }

    /// Checks what both backends refuse alike, before anything is sent.
    pub(crate) fn validate(&self) -> Result<(), StoreError> {
        limit("number of preconditions", self.preconditions.len(), MAX_TXN_OPS)?;
        limit("number of operations", self.ops.len(), MAX_TXN_OPS)?;
        let mut total_bytes = 0;
        for precondition in &self.preconditions {
            validate_key(&precondition.key)?;
            // etcd gives absent keys the revision 0, so it would let this pass as another way to say `Absent`.
            if precondition.expect == Expect::ModRevision(Revision(0)) {
                return Err(StoreError::Invalid(format!(
                    "no record, so not {:?} either, is at revision 0",
                    precondition.key
                )));
            }
            total_bytes += precondition.key.len();
        }
        let mut written = BTreeSet::new();
        for op in &self.ops {
            validate_key(op.key())?;
            if !written.insert(op.key()) {
                return Err(StoreError::Invalid(format!("key {:?} is written twice", op.key())));
            }
            total_bytes += op.key().len();
            match op {
                Op::Put { key, value, .. } => {
                    if value.len() > MAX_VALUE_BYTES {
                        return Err(too_large(
                            format!("value of {key:?} in bytes"),
                            value.len(),
                            MAX_VALUE_BYTES,
                        ));
                    }
                    total_bytes += value.len();
                }
                Op::Delete { .. } => {}
            }
        }
        limit("transaction in bytes", total_bytes, MAX_TXN_BYTES)
    }
}

fn limit(what: &str, size: usize, limit: usize) -> Result<(), StoreError> {
    if size > limit { Err(too_large(what.to_owned(), size, limit)) } else { Ok(()) }
}

fn too_large(what: String, size: usize, limit: usize) -> StoreError {
    StoreError::TooLarge { what, size, limit }
}

/// Refuses keys that one backend would take and the other would not, or that a prefix could not match as meant.
pub(crate) fn validate_key(key: &str) -> Result<(), StoreError> {
    if key.len() > MAX_KEY_BYTES {
        return Err(too_large("key in bytes".to_owned(), key.len(), MAX_KEY_BYTES));
    }
    if key.chars().any(char::is_control) {
        return Err(StoreError::Invalid(format!("key {key:?} holds a control character")));
    }
    if key.split('/').any(str::is_empty) {
        return Err(StoreError::Invalid(format!("key {key:?} has an empty part")));
    }
    Ok(())
}

/// Refuses a store prefix that is not of the form `/a/b/`.
pub(crate) fn validate_store_prefix(prefix: &str) -> Result<(), StoreError> {
    let inner = prefix.strip_prefix('/').and_then(|rest| rest.strip_suffix('/'));
    match inner.map(validate_key) {
        Some(Ok(())) => Ok(()),
        _ => Err(StoreError::Invalid(format!("store prefix {prefix:?} is not of the form /name/version/"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_a_prefix_could_not_match_are_refused() {
        for bad in ["", "/a", "a/", "a//b", "a\0b", "a\nb"] {
            assert!(matches!(validate_key(bad), Err(StoreError::Invalid(_))), "{bad:?}");
        }
        for good in ["a", "jobs/a", "jobs/ä b/1"] {
            validate_key(good).unwrap();
        }
        assert!(matches!(validate_key(&"k".repeat(MAX_KEY_BYTES + 1)), Err(StoreError::TooLarge { .. })));
    }

    #[test]
    fn store_prefixes_begin_and_end_with_a_slash() {
        for bad in ["", "/", "a/", "/a", "//", "/a//b/"] {
            assert!(validate_store_prefix(bad).is_err(), "{bad:?}");
        }
        validate_store_prefix("/crescendo/v1/").unwrap();
    }

    #[test]
    fn limits_name_what_is_too_large() {
        let value = vec![0u8; MAX_VALUE_BYTES + 1];
        let error = Txn::new().put("jobs/a", value).validate().unwrap_err();
        assert_eq!(error.to_string(), "value of \"jobs/a\" in bytes is 1048577, over the limit of 1048576");

        let half = vec![0u8; MAX_TXN_BYTES / 2];
        let txn = Txn::new().put("a", half.clone()).put("b", half);
        assert!(matches!(txn.validate(), Err(StoreError::TooLarge { limit: MAX_TXN_BYTES, .. })));

        let many = (0..=MAX_TXN_OPS).fold(Txn::new(), |txn, n| txn.delete(format!("k{n}")));
        assert!(matches!(many.validate(), Err(StoreError::TooLarge { limit: MAX_TXN_OPS, .. })));
    }

    #[test]
    fn a_key_may_be_written_once() {
        let txn = Txn::new().put("a", "1").delete("a");
        assert!(matches!(txn.validate(), Err(StoreError::Invalid(_))));
    }
}
