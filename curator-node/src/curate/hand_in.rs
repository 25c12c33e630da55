//! What a finished unit leaves: its shard in the object store, then its commit, and a few rejected candidates for people.

use super::{Back, CALL_DEADLINE, StageWorker};
use crate::curate::drawn::UnitResult;
use crescendo_core::object_keys;
use crescendo_core::records::FailureKind;
use crescendo_node::runtime::backoff::{Backoff, random};
use crescendo_node::telemetry::trace;
use crescendo_proto::v1::curation_service_client::CurationServiceClient;
use crescendo_proto::v1::{CommitUnitRequest, ScoreCounts, Shard, UnitLease};
use object_store::{ObjectStoreExt, PutMode, PutPayload};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tracing::Span;

/// Limit of one try to write a shard.
const PUT_DEADLINE: Duration = Duration::from_secs(60);
/// Tries to write a shard before the unit is given back.
const PUT_TRIES: u32 = 5;
/// Limit of writing a sample of rejected candidates.
const SAMPLE_DEADLINE: Duration = Duration::from_secs(10);

impl StageWorker {
    /// Writes the shard and commits the unit, through any outage. Whether the unit is done now, by whomever.
    pub(super) async fn hand_in(
        &self,
        lease: UnitLease,
        result: UnitResult,
        stop: &CancellationToken,
    ) -> bool {
        let UnitResult { shard, rejected, scores, rejected_sample, exhausted, cosines, judged } = result;
        let unit = lease.unit;
        let mut record = Shard { unit, pairs: shard.pairs, ..Shard::default() };
        if shard.pairs > 0 {
            record.path = object_keys::shard(&lease.job_id, &lease.stage, lease.unit, lease.lease_generation);
            record.size_bytes = shard.bytes.len() as u64;
            record.sha256 = shard.sha256;
            if let Err(reason) = self.put(&record.path, shard.bytes.into(), stop).await {
                if !stop.is_cancelled() {
                    tracing::error!(unit, reason, "the shard cannot be written");
                    self.give_back(lease, Back::Failed(FailureKind::Passing, reason), stop).await;
                }
                return false;
            }
        }
        if let Some(sample) = rejected_sample {
            self.put_sample(&lease, sample.bytes).await;
        }
        let rejected_by_name =
            rejected.iter().map(|(reason, count)| (reason.name().to_owned(), *count)).collect();
        let request = CommitUnitRequest {
            lease: Some(lease),
            node_id: self.node_id.clone(),
            shard: Some(record.clone()),
            rejected: rejected_by_name,
            exhausted,
            scores: scores
                .counts()
                .iter()
                .map(|(name, counts)| (name.clone(), ScoreCounts { counts: counts.clone() }))
                .collect(),
        };
        let committed = self
            .controllers
            .call_until_decided("commit unit", CALL_DEADLINE, stop, |channel| {
                let request = request.clone();
                async move { CurationServiceClient::new(channel).commit_unit(request).await }
            })
            .await;
        match committed {
            Ok(response) if response.done_already => {
                self.metrics.units.with_label_values(&["done_already"]).inc();
                trace::end(&Span::current(), "done_already", None);
                tracing::info!(unit, "the unit had been done already");
                true
            }
            Ok(_) => {
                self.metrics.units.with_label_values(&["committed"]).inc();
                self.metrics.pairs_accepted.inc_by(record.pairs);
                for (reason, count) in &rejected {
                    self.metrics.pairs_rejected.with_label_values(&[reason.name()]).inc_by(*count);
                }
                for cosine in cosines {
                    self.metrics.similarity.observe(cosine);
                }
                for score in judged {
                    self.metrics.judge.observe(score);
                }
                let rejected: u64 = rejected.values().sum();
                trace::end(&Span::current(), "committed", None);
                tracing::debug!(unit, pairs = record.pairs, rejected, exhausted, "unit committed");
                true
            }
            Err(_) if stop.is_cancelled() => false,
            Err(status) => {
                self.metrics.units.with_label_values(&["lost"]).inc();
                trace::end(&Span::current(), "lost", Some(status.message()));
                tracing::warn!(unit, %status, "the unit's commit was refused");
                false
            }
        }
    }

    async fn put(&self, path: &str, bytes: bytes::Bytes, stop: &CancellationToken) -> Result<(), String> {
        let location = object_store::path::Path::parse(path).map_err(|e| e.to_string())?;
        let mut failures = 0;
        loop {
            let putting = self.objects.put(&location, PutPayload::from(bytes.clone()));
            let reason = match tokio::time::timeout(PUT_DEADLINE, putting).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => format!("cannot write {path}: {error}"),
                Err(_) => format!("cannot write {path}: no answer within {PUT_DEADLINE:?}"),
            };
            failures += 1;
            if failures >= PUT_TRIES {
                return Err(reason);
            }
            tracing::warn!(reason, failures, "writing a shard failed, trying again");
            let wait = Backoff::default().delay(failures, random());
            tokio::select! {
                () = stop.cancelled() => return Err("stopping".to_owned()),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Writes the sample of rejected candidates, if no one has: it is the same whoever makes the unit. Nothing depends on
    /// it, so one try is enough.
    pub(super) async fn put_sample(&self, lease: &UnitLease, bytes: Vec<u8>) {
        let path = object_keys::rejected_sample(&lease.job_id, &lease.stage, lease.unit);
        let Ok(location) = object_store::path::Path::parse(&path) else { return };
        let putting = self.objects.put_opts(&location, PutPayload::from(bytes), PutMode::Create.into());
        match tokio::time::timeout(SAMPLE_DEADLINE, putting).await {
            Ok(Ok(_) | Err(object_store::Error::AlreadyExists { .. })) => {}
            Ok(Err(error)) => tracing::warn!(path, %error, "the sample of rejected candidates is not kept"),
            Err(_) => tracing::warn!(path, "the sample of rejected candidates is not kept in time"),
        }
    }
}
