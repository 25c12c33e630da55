//! The store's file: its tables, how a record is laid out, and reads.
//!
//! | table | key | value |
//! |---|---|---|
//! | `records` | full key | revision of the last write (u64, little-endian), lease or 0 (u64, little-endian), then the value |
//! | `leased` | (lease, full key) | nothing: an index of `records` by lease |
//! | `meta` | `format`, `revision`, `opened` | u64 |

use std::ops::Bound;
use std::path::Path;

use bytes::Bytes;
use redb::{Database, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};

use crate::error::StoreError;
use crate::lease::LeaseId;
use crate::types::{Page, Revision, Snapshot, Versioned};

pub(super) const RECORDS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("records");
pub(super) const LEASED: TableDefinition<'static, (u64, &str), ()> = TableDefinition::new("leased");
pub(super) const META: TableDefinition<'static, &str, u64> = TableDefinition::new("meta");

pub(super) const META_REVISION: &str = "revision";
const META_FORMAT: &str = "format";
/// Counts how often the file was opened, so that lease numbers are never used twice.
const META_OPENED: &str = "opened";
const FORMAT: u64 = 1;

/// Memory that redb keeps pages in.
const CACHE_BYTES: usize = 64 << 20;
/// A page of records is cut after this many bytes of values.
const MAX_PAGE_BYTES: usize = 8 << 20;
const HEADER_BYTES: usize = 16;

/// What opening a file tells.
pub(super) struct Opened {
    pub db: Database,
    /// The revision now.
    pub revision: Revision,
    /// How often the file was opened, this time included.
    pub times_opened: u64,
}

/// Opens or creates the file, and ends the leases of the process that had it open before: it is gone, since the file
/// is locked by one process at a time.
pub(super) fn open(path: &Path) -> Result<Opened, StoreError> {
    let db = Database::builder().set_cache_size(CACHE_BYTES).create(path).map_err(|error| match error {
        redb::DatabaseError::DatabaseAlreadyOpen => StoreError::InUse { path: path.to_owned() },
        redb::DatabaseError::Storage(redb::StorageError::Corrupted(what)) => {
            StoreError::Corrupt(format!("{}: {what}", path.display()))
        }
        other => StoreError::Open { path: path.to_owned(), source: other.into() },
    })?;
    let (revision, times_opened) = prepare(&db).map_err(|error| match error {
        Failure::Storage(source) => StoreError::Open { path: path.to_owned(), source: source.into() },
        Failure::Store(error) => error,
    })?;
    Ok(Opened { db, revision, times_opened })
}

/// Opens the file anew within the life of a store: its leases go on.
pub(super) fn open_again(path: &Path) -> Result<Database, Failure> {
    Ok(Database::builder().set_cache_size(CACHE_BYTES).open(path)?)
}

/// An error of redb, or one of ours met on the way.
pub(super) enum Failure {
    Storage(redb::Error),
    Store(StoreError),
}

impl<E: Into<redb::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure::Storage(error.into())
    }
}

impl Failure {
    /// For reads, and for writes that were given up before their commit.
    pub(super) fn not_applied(self) -> StoreError {
        match self {
            Failure::Storage(redb::Error::Corrupted(what)) => StoreError::Corrupt(what),
            Failure::Storage(other) => StoreError::NotApplied(other.into()),
            Failure::Store(error) => error,
        }
    }
}

fn prepare(db: &Database) -> Result<(Revision, u64), Failure> {
    let write = db.begin_write()?;
    let (revision, times_opened) = {
        let mut tables = Tables::open(&write)?;
        let format = tables.meta.get(META_FORMAT)?.map_or(FORMAT, |value| value.value());
        if format != FORMAT {
            let message = format!("format {format} of the file is not the one known here ({FORMAT})");
            return Err(Failure::Store(StoreError::Corrupt(message)));
        }
        tables.meta.insert(META_FORMAT, FORMAT)?;
        let times_opened = tables.meta.get(META_OPENED)?.map_or(0, |value| value.value()) + 1;
        tables.meta.insert(META_OPENED, times_opened)?;

        let mut revision = tables.revision()?;
        let leased = tables.leased_keys(0..=u64::MAX)?;
        if !leased.is_empty() {
            revision = Revision(revision.0 + 1);
            for (lease, key) in leased {
                tables.remove(&key, Some(lease))?;
            }
        }
        tables.set_revision(revision)?;
        (revision, times_opened)
    };
    write.commit()?;
    Ok((revision, times_opened))
}

/// The tables within one write transaction.
pub(super) struct Tables<'txn> {
    records: redb::Table<'txn, &'static str, &'static [u8]>,
    leased: redb::Table<'txn, (u64, &'static str), ()>,
    meta: redb::Table<'txn, &'static str, u64>,
}

impl<'txn> Tables<'txn> {
    pub fn open(write: &'txn WriteTransaction) -> Result<Self, Failure> {
        Ok(Self {
            records: write.open_table(RECORDS)?,
            leased: write.open_table(LEASED)?,
            meta: write.open_table(META)?,
        })
    }

    pub fn revision(&self) -> Result<Revision, Failure> {
        Ok(Revision(self.meta.get(META_REVISION)?.map_or(0, |value| value.value())))
    }

    pub fn set_revision(&mut self, revision: Revision) -> Result<(), Failure> {
        self.meta.insert(META_REVISION, revision.0)?;
        Ok(())
    }

    /// The revision and lease of the record at this full key.
    pub fn stamp(&self, full_key: &str) -> Result<Option<Stamp>, Failure> {
        match self.records.get(full_key)? {
            Some(bytes) => Ok(Some(Stamp::read(full_key, bytes.value()).map_err(Failure::Store)?)),
            None => Ok(None),
        }
    }

    pub fn put(&mut self, full_key: &str, value: &[u8], stamp: Stamp) -> Result<(), Failure> {
        if let Some(Stamp { lease: Some(before), .. }) = self.stamp(full_key)?
            && stamp.lease != Some(before)
        {
            self.leased.remove((before.0, full_key))?;
        }
        let lease = stamp.lease.map_or(0, |lease| lease.0);
        let mut bytes = Vec::with_capacity(HEADER_BYTES + value.len());
        bytes.extend_from_slice(&stamp.mod_revision.0.to_le_bytes());
        bytes.extend_from_slice(&lease.to_le_bytes());
        bytes.extend_from_slice(value);
        self.records.insert(full_key, bytes.as_slice())?;
        if lease != 0 {
            self.leased.insert((lease, full_key), ())?;
        }
        Ok(())
    }

    /// Removes a record; says whether there was one.
    pub fn remove(&mut self, full_key: &str, lease: Option<LeaseId>) -> Result<bool, Failure> {
        let existed = self.records.remove(full_key)?.is_some();
        if let Some(lease) = lease {
            self.leased.remove((lease.0, full_key))?;
        }
        Ok(existed)
    }

    /// The full keys put under leases in this range of numbers.
    pub fn leased_keys(
        &self,
        leases: std::ops::RangeInclusive<u64>,
    ) -> Result<Vec<(LeaseId, String)>, Failure> {
        let mut keys = Vec::new();
        for entry in self.leased.range((*leases.start(), "")..)? {
            let (key, ()) = entry.map(|(key, unit)| (key, unit.value()))?;
            let (lease, full_key) = key.value();
            if lease > *leases.end() {
                break;
            }
            keys.push((LeaseId(lease), full_key.to_owned()));
        }
        Ok(keys)
    }
}

/// What stands before the value of a stored record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub mod_revision: Revision,
    pub lease: Option<LeaseId>,
}

impl Stamp {
    fn read(full_key: &str, bytes: &[u8]) -> Result<Self, StoreError> {
        let word =
            |at: usize| bytes.get(at..at + 8).and_then(|part| part.try_into().ok()).map(u64::from_le_bytes);
        match (word(0), word(8)) {
            (Some(revision), Some(lease)) => {
                let lease = (lease != 0).then_some(LeaseId(lease));
                Ok(Self { mod_revision: Revision(revision), lease })
            }
            _ => Err(StoreError::Corrupt(format!("record {full_key:?} is {} bytes, too short", bytes.len()))),
        }
    }
}

fn read_record(prefix: &str, full_key: &str, bytes: &[u8]) -> Result<Versioned, StoreError> {
    let stamp = Stamp::read(full_key, bytes)?;
    Ok(Versioned {
        key: full_key.strip_prefix(prefix).unwrap_or(full_key).to_owned(),
        value: Bytes::copy_from_slice(bytes.get(HEADER_BYTES..).unwrap_or_default()),
        mod_revision: stamp.mod_revision,
        lease: stamp.lease,
    })
}

/// Reads one record; `prefix` is the store's.
pub(super) fn get(db: &Database, prefix: &str, key: &str) -> Result<Option<Versioned>, Failure> {
    let read = db.begin_read()?;
    let full_key = format!("{prefix}{key}");
    match read.open_table(RECORDS)?.get(full_key.as_str())? {
        Some(bytes) => Ok(Some(read_record(prefix, &full_key, bytes.value()).map_err(Failure::Store)?)),
        None => Ok(None),
    }
}

/// The revision of the last commit.
pub(super) fn committed_revision(db: &Database) -> Result<Revision, Failure> {
    let read = db.begin_read()?;
    Ok(Revision(read.open_table(META)?.get(META_REVISION)?.map_or(0, |value| value.value())))
}

/// Reads a page of the records below `under` (without the store's prefix) after the key `after`.
pub(super) fn list(
    db: &Database,
    prefix: &str,
    under: &str,
    after: Option<&str>,
    limit: usize,
) -> Result<Page, Failure> {
    page(&db.begin_read()?, prefix, under, after, limit)
}

/// The same, as a transaction sees it that may show several pages.
pub(super) fn page(
    read: &ReadTransaction,
    prefix: &str,
    under: &str,
    after: Option<&str>,
    limit: usize,
) -> Result<Page, Failure> {
    let (items, more, revision) = scan(read, prefix, under, after, limit, MAX_PAGE_BYTES)?;
    let next = if more { items.last().map(|item| item.key.clone()) } else { None };
    Ok(Page { items, next, revision })
}

/// Reads all records below `under` (without the store's prefix).
pub(super) fn snapshot(db: &Database, prefix: &str, under: &str) -> Result<Snapshot, Failure> {
    let (items, _, revision) = scan(&db.begin_read()?, prefix, under, None, usize::MAX, usize::MAX)?;
    Ok(Snapshot { items, revision })
}

fn scan(
    read: &ReadTransaction,
    prefix: &str,
    under: &str,
    after: Option<&str>,
    limit: usize,
    limit_bytes: usize,
) -> Result<(Vec<Versioned>, bool, Revision), Failure> {
    let revision = Revision(read.open_table(META)?.get(META_REVISION)?.map_or(0, |value| value.value()));
    let records = read.open_table(RECORDS)?;
    let full_under = format!("{prefix}{under}");
    let full_after = after.map(|key| format!("{prefix}{key}")).filter(|key| *key >= full_under);
    let start = match &full_after {
        Some(key) => Bound::Excluded(key.as_str()),
        None => Bound::Included(full_under.as_str()),
    };
    let mut items = Vec::new();
    let mut bytes_read = 0;
    for entry in records.range::<&str>((start, Bound::Unbounded))? {
        let (key, bytes) = entry?;
        if !key.value().starts_with(&full_under) {
            break;
        }
        if items.len() >= limit || bytes_read >= limit_bytes {
            return Ok((items, true, revision));
        }
        bytes_read += bytes.value().len();
        items.push(read_record(prefix, key.value(), bytes.value()).map_err(Failure::Store)?);
    }
    Ok((items, false, revision))
}
