//! From the queue to the collector, in batches. A batch that is not taken is lost, and counted.

use std::time::Duration;

use opentelemetry_otlp::{WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;

use super::{Counts, Outgoing, Traces};

/// Spans of one message at most.
const BATCH: usize = 512;
/// How long spans wait for company.
const GATHER: Duration = Duration::from_millis(500);
/// Limit of handing over one batch.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// Limit of handing over what is left at the end.
const LAST_TIMEOUT: Duration = Duration::from_secs(2);

impl Traces {
    /// Hands spans over until `stop`, and then what is left.
    pub async fn export(self, stop: CancellationToken) {
        let Self { counts, outgoing } = self;
        let Some(Outgoing { endpoint, resource, mut queue, provider }) = outgoing else { return };
        let channel = match Endpoint::from_shared(endpoint.clone()) {
            Ok(endpoint) => endpoint.connect_timeout(EXPORT_TIMEOUT).connect_lazy(),
            Err(error) => {
                tracing::error!(endpoint, %error, "no traces: the collector's address is none");
                return;
            }
        };
        let built = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_channel(channel)
            .with_timeout(EXPORT_TIMEOUT)
            .build();
        let mut exporter = match built {
            Ok(exporter) => exporter,
            Err(error) => {
                tracing::error!(endpoint, %error, "no traces: the exporter cannot be made");
                return;
            }
        };
        exporter.set_resource(&resource);
        tracing::info!(endpoint, "traces go to a collector");
        let mut hands = Hands { exporter, counts, endpoint, taken: true };
        while let Some(batch) = gather(&mut queue, &stop).await {
            hands.over(batch, EXPORT_TIMEOUT).await;
        }
        queue.close();
        let mut left = Vec::new();
        while let Ok(span) = queue.try_recv() {
            left.push(span);
        }
        if !left.is_empty() {
            hands.over(left, LAST_TIMEOUT).await;
        }
        drop(provider);
    }
}

/// The next spans, or nothing once it is time to stop.
async fn gather(queue: &mut mpsc::Receiver<SpanData>, stop: &CancellationToken) -> Option<Vec<SpanData>> {
    let mut batch = Vec::new();
    tokio::select! {
        () = stop.cancelled() => return None,
        count = queue.recv_many(&mut batch, BATCH) => if count == 0 { return None },
    }
    let company = async {
        while batch.len() < BATCH {
            let Some(span) = queue.recv().await else { break };
            batch.push(span);
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        _ = tokio::time::timeout(GATHER, company) => {}
    }
    Some(batch)
}

struct Hands {
    exporter: opentelemetry_otlp::SpanExporter,
    counts: Counts,
    endpoint: String,
    /// The last batch was.
    taken: bool,
}

impl Hands {
    async fn over(&mut self, batch: Vec<SpanData>, limit: Duration) {
        let spans = batch.len() as u64;
        let outcome = tokio::time::timeout(limit, self.exporter.export(batch)).await;
        let problem = match outcome {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no answer within {limit:?}")),
        };
        let taken = problem.is_none();
        match problem {
            None => self.counts.exported.inc_by(spans),
            Some(reason) => {
                self.counts.dropped.with_label_values(&["not_taken"]).inc_by(spans);
                // Said once, when it begins.
                if self.taken {
                    tracing::warn!(
                        endpoint = self.endpoint,
                        reason,
                        "the collector takes no spans: they are dropped"
                    );
                }
            }
        }
        if taken && !self.taken {
            tracing::info!(endpoint = self.endpoint, "the collector takes spans again");
        }
        self.taken = taken;
    }
}
