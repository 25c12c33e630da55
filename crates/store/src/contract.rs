//! What every backend does, as tests that are stamped for each of them with [`crate::contract_suite!`].

mod leadership;
mod leases;
mod records;
mod watches;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::{Revision, Store, Watch, WatchEvent};

pub use leadership::*;
pub use leases::*;
pub use records::*;
pub use watches::*;

/// Longer than anything here takes on a busy machine; a wait that runs into it has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// One backend, set up for one test, with nothing in it.
#[async_trait]
pub trait Fixture: Sized + Send + Sync {
    /// Sets it up; `None` when it is not to be had on this machine, which was said on stderr.
    async fn set_up() -> Option<Self>;

    /// The store.
    fn store(&self) -> Arc<dyn Store>;

    /// Another client of the same records; the same one where only one can be.
    fn other_client(&self) -> Arc<dyn Store>;

    /// Drops the history up to and including `revision`.
    async fn compact(&self, revision: Revision);
}

/// The next event of a watch.
async fn next(watch: &mut Watch) -> WatchEvent {
    tokio::time::timeout(PATIENCE, watch.next()).await.expect("no event in time").expect("the watch ended")
}

/// Waits until `condition` gives something.
async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut condition: impl FnMut() -> F) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(tokio::time::Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Stamps the suite as tests of a [`contract::Fixture`](Fixture) type.
#[macro_export]
macro_rules! contract_suite {
    ($fixture:ty) => {
        $crate::contract_suite!(@tests $fixture:
            a_record_is_created_once
            a_write_at_an_old_revision_is_a_conflict
            preconditions_are_reported_in_order
            a_transaction_is_applied_as_a_whole_or_not_at_all
            a_transaction_that_changes_nothing_has_no_revision_of_its_own
            concurrent_increments_lose_nothing
            values_are_kept_byte_for_byte
            pages_cover_everything_once_in_order
            a_prefix_matches_whole_beginnings_only
            large_records_are_paged_by_size
            a_snapshot_shows_one_moment
            pages_of_a_snapshot_show_one_moment
            a_snapshot_whose_revision_is_gone_says_so
            large_records_are_paged_by_size_at_one_revision
            what_is_over_a_limit_is_refused_before_it_is_sent
            a_closed_store_refuses_calls_and_ends_its_watches
            a_watch_from_nothing_begins_with_everything
            a_watch_shows_changes_in_order
            a_watch_misses_nothing_after_a_listing
            a_watch_whose_history_is_gone_reads_everything
            a_watch_from_a_revision_to_come_reads_everything
            a_slow_reader_misses_nothing
            a_lease_is_kept_alive
            a_lease_that_nobody_renews_takes_its_records_with_it
            a_revoked_or_dropped_lease_takes_its_records_with_it
            a_record_put_again_without_its_lease_stays
            nothing_is_put_under_a_lease_that_ended
            one_of_two_candidates_wins
            a_leader_that_vanishes_is_replaced_and_fenced_off
            a_leader_whose_record_is_deleted_is_fenced_off
            a_campaign_ends_at_its_deadline
        );
    };
    (@tests $fixture:ty: $($test:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                if let Some(fixture) = <$fixture as $crate::contract::Fixture>::set_up().await {
                    $crate::contract::$test(&fixture).await;
                }
            }
        )*
    };
}
