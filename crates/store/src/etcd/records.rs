//! Translation between our records and transactions and etcd's.

use etcd_client::{
    Compare, CompareOp, DeleteOptions, GetOptions, KeyValue, PutOptions, Txn as EtcdTxn, TxnOp, TxnOpResponse,
};

use crate::error::StoreError;
use crate::lease::LeaseId;
use crate::types::{Expect, Op, Precondition, Revision, Txn, Versioned};

/// etcd's revisions are signed; one past its range matches nothing.
pub(super) fn to_etcd(revision: Revision) -> i64 {
    i64::try_from(revision.0).unwrap_or(i64::MAX)
}

pub(super) fn from_etcd(revision: i64) -> Revision {
    Revision(u64::try_from(revision).unwrap_or(0))
}

/// The smallest key above all that start with `prefix`, which is not empty and ends in an ASCII or UTF-8 byte.
pub(super) fn end_of_prefix(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        // No byte of UTF-8 is 0xff.
        *last += 1;
    }
    end
}

/// The key without the store's prefix.
pub(super) fn short_key(prefix: &str, kv: &KeyValue) -> Result<String, StoreError> {
    let full_key =
        kv.key_str().map_err(|_| StoreError::Corrupt(format!("a key under {prefix:?} is not UTF-8")))?;
    Ok(full_key.strip_prefix(prefix).unwrap_or(full_key).to_owned())
}

pub(super) fn record(prefix: &str, kv: &KeyValue) -> Result<Versioned, StoreError> {
    let lease = u64::try_from(kv.lease()).unwrap_or(0);
    Ok(Versioned {
        key: short_key(prefix, kv)?,
        value: kv.value().to_vec().into(),
        mod_revision: from_etcd(kv.mod_revision()),
        lease: (lease != 0).then_some(LeaseId(lease)),
    })
}

/// A transaction of etcd's; when a comparison fails, it reads every compared key instead, to say which one it was.
pub(super) fn build(prefix: &str, txn: &Txn) -> EtcdTxn {
    let full = |key: &str| format!("{prefix}{key}");
    let mut compares = Vec::new();
    let mut reads = Vec::new();
    let read = |key: &str| TxnOp::get(full(key), Some(GetOptions::new().with_keys_only()));
    if let Some(fence) = &txn.fence {
        compares.push(Compare::mod_revision(full(&fence.key), CompareOp::Equal, to_etcd(fence.revision)));
        reads.push(read(&fence.key));
    }
    for Precondition { key, expect } in &txn.preconditions {
        compares.push(match expect {
            Expect::Absent => Compare::version(full(key), CompareOp::Equal, 0),
            Expect::Exists => Compare::version(full(key), CompareOp::Greater, 0),
            Expect::ModRevision(revision) => {
                Compare::mod_revision(full(key), CompareOp::Equal, to_etcd(*revision))
            }
        });
        reads.push(read(key));
    }
    let writes: Vec<TxnOp> = txn
        .ops
        .iter()
        .map(|op| match op {
            Op::Put { key, value, lease } => {
                let lease = lease.map_or(0, |lease| i64::try_from(lease.0).unwrap_or(i64::MAX));
                TxnOp::put(full(key), value.to_vec(), Some(PutOptions::new().with_lease(lease)))
            }
            Op::Delete { key } => TxnOp::delete(full(key), Some(DeleteOptions::new())),
        })
        .collect();
    EtcdTxn::new().when(compares).and_then(writes).or_else(reads)
}

/// Says why a transaction was refused, from what it read of the compared keys, in the order of [`build`].
pub(super) fn refusal(txn: &Txn, responses: &[TxnOpResponse]) -> StoreError {
    let mut found = responses.iter().map(|response| match response {
        TxnOpResponse::Get(get) => get.kvs().first().map(|kv| from_etcd(kv.mod_revision())),
        _ => None,
    });
    let mut next = || found.next().flatten();
    if let Some(fence) = &txn.fence
        && next() != Some(fence.revision)
    {
        return StoreError::NotLeader { name: fence.name.clone() };
    }
    for Precondition { key, expect } in &txn.preconditions {
        let mod_revision = next();
        let holds = match expect {
            Expect::Absent => mod_revision.is_none(),
            Expect::Exists => mod_revision.is_some(),
            Expect::ModRevision(revision) => mod_revision == Some(*revision),
        };
        if !holds {
            return StoreError::Conflict { key: key.clone() };
        }
    }
    StoreError::NotApplied("etcd refused the transaction although all of its conditions hold".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_where_the_next_begins() {
        assert_eq!(end_of_prefix("/a/"), b"/a0");
        assert!(end_of_prefix("/ä").as_slice() > "/ä\u{10ffff}".as_bytes());
    }

    #[test]
    fn revisions_outside_the_other_range_match_nothing() {
        assert_eq!(to_etcd(Revision(u64::MAX)), i64::MAX);
        assert_eq!(from_etcd(-1), Revision(0));
    }
}
