//! Leases, the task that keeps one alive, and the leadership that stands on one.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::error::StoreError;
use crate::revision::Revision;
use crate::tasks::Tasks;

/// A lease's number in its store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

impl fmt::Display for LeaseId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// A promise by the store to keep some records only while this handle's process is alive and in touch.
///
/// Renewed by a task of the store until it is revoked, dropped (which revokes it in the background) or lost.
#[derive(Debug)]
pub struct Lease {
    id: LeaseId,
    ttl: Duration,
    lost: CancellationToken,
    #[cfg(any(test, feature = "testing"))]
    abandoned: CancellationToken,
    finished: CancellationToken,
    // Dropping it asks the keeper to revoke.
    release: Option<DropGuard>,
}

impl Lease {
    /// Its number.
    pub fn id(&self) -> LeaseId {
        self.id
    }

    /// The time that it lives without renewal, as granted: at least what was asked for.
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// Resolves when the lease is lost: the store said that it is gone, or its time has passed since the last renewal
    /// that was confirmed. Does not resolve for a lease that is revoked.
    pub async fn lost(&self) {
        self.lost.cancelled().await;
    }

    /// Whether [`Lease::lost`] would resolve at once.
    pub fn is_lost(&self) -> bool {
        self.lost.is_cancelled()
    }

    /// Ends the lease, and with it the records put under it. Returns when the store has confirmed it, or when it could
    /// not be reached for a while: then the lease ends when its time is up.
    pub async fn revoke(mut self) {
        self.release.take();
        self.finished.cancelled().await;
    }

    /// Stops renewing without revoking, as if this process had died.
    #[cfg(any(test, feature = "testing"))]
    pub fn abandon(self) {
        self.abandoned.cancel();
    }
}

/// What the keeper of a lease asks of a backend.
#[async_trait]
pub(crate) trait LeaseBackend: Send + 'static {
    /// Renews the lease. May be dropped at its deadline and called again.
    async fn renew(&mut self) -> Result<Renewal, StoreError>;

    /// Ends the lease.
    async fn revoke(&mut self) -> Result<(), StoreError>;
}

/// The answer to a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Renewal {
    /// Its time starts again.
    Renewed,
    /// There is no such lease (any more).
    Gone,
}

/// Starts the task that keeps a lease alive, and returns the handle.
///
/// `asked_at` is when the grant was asked for: counting from there, the lease is never believed in for longer than the
/// store itself keeps it.
pub(crate) fn spawn_keeper(
    tasks: &Tasks,
    id: LeaseId,
    ttl: Duration,
    asked_at: Instant,
    backend: impl LeaseBackend,
) -> Lease {
    let lost = CancellationToken::new();
    let abandoned = CancellationToken::new();
    let finished = CancellationToken::new();
    let release = tasks.child_token();
    let keeper = Keeper {
        id,
        ttl,
        renewed_at: asked_at,
        lost: lost.clone(),
        abandoned: abandoned.clone(),
        release: release.clone(),
        backend,
    };
    let finished_guard = finished.clone().drop_guard();
    tasks.spawn(async move {
        let _finished = finished_guard;
        keeper.run().await;
    });
    Lease {
        id,
        ttl,
        lost,
        #[cfg(any(test, feature = "testing"))]
        abandoned,
        finished,
        release: Some(release.drop_guard()),
    }
}

struct Keeper<B> {
    id: LeaseId,
    ttl: Duration,
    renewed_at: Instant,
    lost: CancellationToken,
    abandoned: CancellationToken,
    release: CancellationToken,
    backend: B,
}

impl<B: LeaseBackend> Keeper<B> {
    async fn run(mut self) {
        // Often: what is left of the lease when the store goes out of reach is how long that may last.
        let interval = self.ttl / 8;
        let retry = self.ttl / 12;
        // A store that is slow is not taken for one that is gone.
        let patience = self.ttl / 3;
        let mut pause = interval;
        loop {
            tokio::select! {
                // In order: dropping an abandoned handle asks for the release too.
                biased;
                () = self.abandoned.cancelled() => return,
                () = self.release.cancelled() => return self.end().await,
                () = sleep(pause) => {}
            }
            let expires_at = self.renewed_at + self.ttl;
            let asked_at = Instant::now();
            let remaining = expires_at.saturating_duration_since(asked_at);
            pause = match timeout(remaining.min(patience), self.backend.renew()).await {
                Ok(Ok(Renewal::Renewed)) => {
                    self.renewed_at = asked_at;
                    interval
                }
                Ok(Ok(Renewal::Gone)) => {
                    tracing::warn!(lease = %self.id, "lease is gone from the store");
                    self.lost.cancel();
                    return;
                }
                Ok(Err(error)) => {
                    tracing::debug!(lease = %self.id, error = &error as &dyn std::error::Error, "cannot renew lease");
                    retry
                }
                Err(_elapsed) => retry,
            };
            let left = (self.renewed_at + self.ttl).saturating_duration_since(Instant::now());
            if left.is_zero() {
                tracing::warn!(lease = %self.id, ttl = ?self.ttl, "lease ran out: the store could not be reached");
                self.lost.cancel();
                // The store may have granted extra time after an outage of its own; nobody here believes in it any more.
                return self.end().await;
            }
            pause = pause.min(left);
        }
    }

    async fn end(&mut self) {
        match timeout(self.ttl, self.backend.revoke()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::debug!(lease = %self.id, error = &error as &dyn std::error::Error, "cannot revoke lease");
            }
            Err(_elapsed) => tracing::debug!(lease = %self.id, "revoking the lease took too long"),
        }
    }
}

/// Who leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// The identity that it campaigned with.
    pub identity: String,
    /// When it was elected.
    pub elected_at: Revision,
}

/// What a transaction checks to know that a leadership still stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    pub(crate) name: String,
    /// The leader's record, without the store's prefix.
    pub(crate) key: String,
    /// The revision that the leader's record was written at; it is never rewritten.
    pub(crate) revision: Revision,
}

/// A leadership won by [`crate::Store::campaign`]. Dropping it resigns in the background.
///
/// Holding one protects nothing by itself: a process that was paused may believe in it past its end. What protects is
/// [`crate::Txn::led_by`], which has the store check.
#[derive(Debug)]
pub struct Leadership {
    fence: Fence,
    identity: String,
    lease: Lease,
}

impl Leadership {
    pub(crate) fn new(fence: Fence, identity: String, lease: Lease) -> Self {
        Self { fence, identity, lease }
    }

    /// The name campaigned for.
    pub fn name(&self) -> &str {
        &self.fence.name
    }

    /// The identity campaigned with.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// When it was won: larger for each new leader of the same name.
    pub fn elected_at(&self) -> Revision {
        self.fence.revision
    }

    /// What transactions check; cheap to keep where the leadership itself cannot go.
    pub fn fence(&self) -> &Fence {
        &self.fence
    }

    /// Resolves when the leadership's lease is lost. A leader record that somebody deletes by hand is noticed by the
    /// next transaction, with [`StoreError::NotLeader`].
    pub async fn lost(&self) {
        self.lease.lost().await;
    }

    /// Whether [`Leadership::lost`] would resolve at once.
    pub fn is_lost(&self) -> bool {
        self.lease.is_lost()
    }

    /// Gives the leadership up, so that another can have it at once.
    pub async fn resign(self) {
        self.lease.revoke().await;
    }

    /// Stops renewing without resigning, as if this process had died.
    #[cfg(any(test, feature = "testing"))]
    pub fn abandon(self) {
        self.lease.abandon();
    }
}
