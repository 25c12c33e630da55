//! The leases of this process, kept in memory: they end with it.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::error::StoreError;
use crate::lease::{LeaseId, Renewal};

/// Most leases at a time.
const MAX_LEASES: usize = 65_536;

#[derive(Debug)]
pub(super) struct LeaseTable {
    // A std mutex: held for a look-up, never across an await.
    leases: Mutex<Granted>,
    changed: Notify,
}

#[derive(Debug)]
struct Granted {
    next_id: u64,
    by_id: BTreeMap<LeaseId, Entry>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    ttl: Duration,
    expires_at: Instant,
}

impl LeaseTable {
    /// `times_opened` keeps the numbers apart from those of earlier processes.
    pub fn new(times_opened: u64) -> Self {
        let granted = Granted { next_id: (times_opened << 32) + 1, by_id: BTreeMap::new() };
        Self { leases: Mutex::new(granted), changed: Notify::new() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Granted> {
        self.leases.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub fn grant(&self, ttl: Duration, now: Instant) -> Result<LeaseId, StoreError> {
        let mut granted = self.lock();
        if granted.by_id.len() >= MAX_LEASES {
            return Err(StoreError::NotApplied(
                format!("{MAX_LEASES} leases are granted, which is the limit").into(),
            ));
        }
        let id = LeaseId(granted.next_id);
        granted.next_id += 1;
        granted.by_id.insert(id, Entry { ttl, expires_at: now + ttl });
        self.changed.notify_one();
        Ok(id)
    }

    pub fn renew(&self, id: LeaseId, now: Instant) -> Renewal {
        match self.lock().by_id.get_mut(&id) {
            Some(entry) if entry.expires_at > now => {
                entry.expires_at = now + entry.ttl;
                Renewal::Renewed
            }
            _ => Renewal::Gone,
        }
    }

    pub fn is_alive(&self, id: LeaseId, now: Instant) -> bool {
        self.lock().by_id.get(&id).is_some_and(|entry| entry.expires_at > now)
    }

    pub fn remove(&self, id: LeaseId) {
        self.lock().by_id.remove(&id);
    }

    /// Removes and returns the leases whose time is up.
    pub fn take_expired(&self, now: Instant) -> Vec<LeaseId> {
        let mut granted = self.lock();
        let expired: Vec<LeaseId> =
            granted.by_id.iter().filter(|(_, entry)| entry.expires_at <= now).map(|(id, _)| *id).collect();
        for id in &expired {
            granted.by_id.remove(id);
        }
        expired
    }

    /// Waits until the time of some lease is up.
    pub async fn next_expiry(&self) {
        loop {
            let next = self.lock().by_id.values().map(|entry| entry.expires_at).min();
            match next {
                Some(at) if at <= Instant::now() => return,
                Some(at) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(at) => {}
                        () = self.changed.notified() => {}
                    }
                }
                None => self.changed.notified().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_lives_from_renewal_to_renewal() {
        let table = LeaseTable::new(3);
        let start = Instant::now();
        let ttl = Duration::from_secs(10);
        let id = table.grant(ttl, start).unwrap();
        assert_eq!(table.renew(id, start + Duration::from_secs(9)), Renewal::Renewed);
        assert!(table.is_alive(id, start + Duration::from_secs(18)));
        assert!(table.take_expired(start + Duration::from_secs(18)).is_empty());
        assert_eq!(table.renew(id, start + Duration::from_secs(19)), Renewal::Gone);
        assert_eq!(table.take_expired(start + Duration::from_secs(19)), [id]);
        assert!(!table.is_alive(id, start));
    }
}
