//! What a curator knows of a stage's pair log: kept up with the controller's registry.

use crescendo_node::session::call::Controllers;
use crescendo_proto::v1::curation_service_client::CurationServiceClient;
use crescendo_proto::v1::{Shard, StageRef, WatchPairLogRequest, WatchPairLogResponse};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// Limit of opening the watch.
const OPEN_DEADLINE: Duration = Duration::from_secs(10);

/// The readable part of a log.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogState {
    /// Shards with at least one pair, in order.
    shards: Vec<Arc<Shard>>,
    /// First unit that is not known yet.
    next_unit: u64,
    /// Pairs that can be read, from index 0.
    pub committed: u64,
    /// It will not grow any more.
    pub sealed: bool,
}

impl LogState {
    /// A log of these shards, which follow each other, cut at `committed` pairs.
    #[cfg(test)]
    pub(crate) fn of(shards: Vec<Shard>, committed: u64) -> LogState {
        let mut log = LogState::default();
        log.extend(WatchPairLogResponse { shards, committed, sealed: true })
            .expect("shards follow each other");
        log
    }

    /// The shard that holds the pair at `index`, and its place in it. None beyond what is committed.
    pub fn find(&self, index: u64) -> Option<(Arc<Shard>, usize)> {
        if index >= self.committed {
            return None;
        }
        let after = self.shards.partition_point(|shard| shard.first_index <= index);
        let shard = self.shards.get(after.checked_sub(1)?)?;
        let place = index - shard.first_index;
        (place < shard.pairs).then(|| Some((shard.clone(), usize::try_from(place).ok()?)))?
    }

    /// Takes over news from the registry. Shards that are known already are skipped; one that leaves a gap in the
    /// indices is an error.
    fn extend(&mut self, news: WatchPairLogResponse) -> Result<(), Status> {
        for shard in news.shards {
            if shard.unit < self.next_unit {
                continue;
            }
            self.next_unit = shard.unit.saturating_add(1);
            if shard.pairs == 0 {
                continue;
            }
            let end = self.shards.last().map_or(0, |last| last.first_index.saturating_add(last.pairs));
            if shard.first_index != end {
                let (unit, first) = (shard.unit, shard.first_index);
                return Err(Status::internal(format!("unit {unit} begins at index {first}, not at {end}")));
            }
            self.shards.push(Arc::new(shard));
        }
        self.committed = self.committed.max(news.committed);
        self.sealed |= news.sealed;
        Ok(())
    }
}

/// Keeps `log` up to date until it is sealed or `stop` is cancelled, through outages of the controller.
pub async fn follow(
    stage: StageRef,
    controllers: Controllers,
    log: watch::Sender<LogState>,
    stop: CancellationToken,
) {
    let mut failures = 0u32;
    while !stop.is_cancelled() && !log.borrow().sealed {
        let (before, tried) = (log.borrow().next_unit, controllers.choice());
        let ended = tokio::select! {
            () = stop.cancelled() => return,
            ended = follow_once(&stage, &controllers, &log) => ended,
        };
        let Err(status) = ended else { continue };
        // News is a sign of life: only silence makes the waits longer.
        failures = if log.borrow().next_unit > before { 1 } else { failures.saturating_add(1) };
        let wait = controllers.failed(tried, &status, failures);
        tracing::warn!(%status, failures, ?wait, "the watch on the pair log ended, opening it again");
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

async fn follow_once(
    stage: &StageRef,
    controllers: &Controllers,
    log: &watch::Sender<LogState>,
) -> Result<(), Status> {
    let request = WatchPairLogRequest {
        job_id: stage.job_id.clone(),
        stage: stage.stage.clone(),
        from_unit: log.borrow().next_unit,
    };
    let mut client = CurationServiceClient::new(controllers.channel())
        .max_decoding_message_size(crescendo_proto::MAX_REPLY_BYTES);
    let opening = tokio::time::timeout(OPEN_DEADLINE, client.watch_pair_log(request));
    let mut news = opening
        .await
        .map_err(|_| Status::deadline_exceeded("the watch was not opened in time"))??
        .into_inner();
    while let Some(response) = news.message().await? {
        let mut extended = Ok(());
        log.send_if_modified(|state| {
            let before = (state.committed, state.sealed);
            extended = state.extend(response);
            before != (state.committed, state.sealed)
        });
        extended?;
        if log.borrow().sealed {
            return Ok(());
        }
    }
    Err(Status::unavailable("the controller closed the watch"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(unit: u64, first_index: u64, pairs: u64) -> Shard {
        Shard { unit, first_index, pairs, path: format!("u{unit}"), ..Shard::default() }
    }

    fn news(shards: Vec<Shard>, committed: u64, sealed: bool) -> WatchPairLogResponse {
        WatchPairLogResponse { shards, committed, sealed }
    }

    #[test]
    fn an_index_leads_to_its_shard() {
        let mut log = LogState::default();
        log.extend(news(vec![shard(0, 0, 3), shard(1, 3, 0), shard(2, 3, 4)], 6, false)).expect("no gap");
        let place = |index| log.find(index).map(|(shard, place)| (shard.unit, place));
        assert_eq!(
            (0..8).map(place).collect::<Vec<_>>(),
            [
                Some((0, 0)),
                Some((0, 1)),
                Some((0, 2)),
                Some((2, 0)),
                Some((2, 1)),
                Some((2, 2)),
                // The log is cut within its last shard.
                None,
                None,
            ]
        );
    }

    #[test]
    fn what_is_sent_again_changes_nothing_and_a_gap_is_refused() {
        let mut log = LogState::default();
        log.extend(news(vec![shard(0, 0, 3)], 3, false)).expect("no gap");
        let before = log.clone();
        log.extend(news(vec![shard(0, 0, 3)], 3, false)).expect("known");
        assert_eq!(log, before);
        assert!(log.extend(news(vec![shard(1, 5, 3)], 8, false)).is_err());
    }
}
