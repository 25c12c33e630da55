//! Feeds one reader of a job's log: from memory, and from what the processes have kept in the object store.

use std::time::Duration;

use crescendo_core::access::Scope;
use crescendo_core::ids::{JobId, Tenant};
use crescendo_node::telemetry::log_archive::{self, MAX_LOG_BYTES};
use crescendo_proto::status;
use crescendo_proto::v1;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::Status;

use crate::engine;
use crate::leadership::EngineHandle;
use crate::logs::{self, LogHub, MAX_LINES, Told};
use crate::relay::Relays;

/// Lines that wait for a reader at most.
pub const LINES_WAITING: usize = 256;
/// Limit of reading what is kept of a log.
const KEPT_DEADLINE: Duration = Duration::from_secs(10);
/// Hint to readers for whom there is no place.
const KEPT_RETRY_AFTER: Duration = Duration::from_secs(2);
/// A follower looks whether its job still runs this often.
const FOLLOW_EVERY: Duration = Duration::from_secs(1);
/// A process has written down by then what it told the controller before this one, and curators are here to read it.
const CATCH_UP_EVERY: Duration = Duration::from_secs(5);
const CATCH_UP_TRIES: usize = 3;

/// What nodes have kept of a job's log in the object store, read by a curator.
pub struct KeptLog {
    pub engine: EngineHandle,
    pub relays: Relays,
    pub tenant: Option<Tenant>,
    pub job: JobId,
    pub scope: Scope,
}

impl KeptLog {
    async fn read(&self) -> Result<Vec<v1::LogLine>, Status> {
        let expected = self.relays.expect(self.tenant.clone()).ok_or_else(|| {
            status::exhausted("as many files are being read as may be at a time", KEPT_RETRY_AFTER)
        })?;
        let (job, scope, read_id) = (self.job.clone(), self.scope.clone(), expected.read_id.clone());
        self.engine
            .ask(|reply| {
                engine::Request::Objects(engine::ObjectRequest::ReadKeptLog { job, scope, read_id, reply })
            })
            .await?;
        let text = expected.collect(MAX_LOG_BYTES, KEPT_DEADLINE).await?;
        let job = self.job.to_string();
        tokio::task::spawn_blocking(move || log_archive::parse(&job, &text))
            .await
            .map_err(|error| Status::internal(format!("read a log: {error}")))
    }
}

/// Feeds one reader of logs, at the reader's pace.
pub struct LogReader {
    pub engine: EngineHandle,
    pub logs: LogHub,
    pub older: KeptLog,
    pub job: JobId,
    pub scope: Scope,
    pub out: mpsc::Sender<Result<v1::ReadLogsResponse, Status>>,
}

/// The controller before this one may have heard lines that no process had written down yet when the reader came, and
/// nobody may have been here to read them: they are looked for once more.
struct CatchUp {
    told: Told,
    due: Instant,
    tries: usize,
}

impl LogReader {
    /// The last `tail` lines, then those that come as long as the job is open.
    pub async fn run(self, tail: usize, is_open: bool, follow: bool) {
        let mut first = self.logs.tail(&self.job, tail);
        let next = first.next;
        let mut catch_up = None;
        if first.lines.len() < tail {
            match self.older.read().await {
                Ok(older) => first.lines = logs::merged(older, first.lines, tail),
                // A job that has just begun may have none, and what this controller has is worth something.
                Err(status) if is_open || !first.lines.is_empty() => {
                    tracing::info!(job = %self.job, %status, "what is kept of a log cannot be read");
                }
                Err(status) => {
                    // The reader may have gone.
                    let _ = self.out.send(Err(status)).await;
                    return;
                }
            }
            let told = Told::of_tail(&first.lines, tail);
            catch_up = Some(CatchUp { told, due: Instant::now() + CATCH_UP_EVERY, tries: CATCH_UP_TRIES });
        }
        if self.send(first.lines).await && follow && is_open {
            self.follow(next, catch_up).await;
        }
    }

    async fn follow(self, mut next: u64, mut catch_up: Option<CatchUp>) {
        let mut open = true;
        loop {
            if let Some(due) = catch_up.take_if(|catch_up| catch_up.due <= Instant::now()) {
                let (lines, again) = self.catch_up(due).await;
                catch_up = again;
                if !self.send(lines).await {
                    return;
                }
            }
            let excerpt = self.logs.read(&self.job, next, LINES_WAITING);
            next = excerpt.next;
            if !excerpt.lines.is_empty() {
                catch_up = catch_up.filter(|catch_up| catch_up.told.count() <= 2 * MAX_LINES);
                if let Some(catch_up) = &mut catch_up {
                    catch_up.told.add(&excerpt.lines);
                }
                if !self.send(excerpt.lines).await {
                    return;
                }
                continue;
            }
            if !open && catch_up.is_none() {
                return;
            }
            let timed_out = tokio::select! {
                () = self.logs.added() => false,
                () = self.out.closed() => return,
                () = tokio::time::sleep(FOLLOW_EVERY) => true,
            };
            if timed_out && open {
                let (job, scope) = (self.job.clone(), self.scope.clone());
                open = match self.engine.ask(|reply| engine::Request::JobExists { job, scope, reply }).await {
                    Ok(open) => open,
                    Err(status) => {
                        // The reader has gone, or is told why it ends.
                        let _ = self.out.send(Err(status)).await;
                        return;
                    }
                };
            }
        }
    }

    /// What was kept and not told yet, and what is left to try.
    async fn catch_up(&self, CatchUp { told, tries, .. }: CatchUp) -> (Vec<v1::LogLine>, Option<CatchUp>) {
        match self.older.read().await {
            Ok(kept) => (told.untold(kept), None),
            Err(status) => {
                tracing::info!(job = %self.job, %status, "what is kept of a log cannot be read");
                let again = CatchUp { told, due: Instant::now() + CATCH_UP_EVERY, tries: tries - 1 };
                (Vec::new(), (again.tries > 0).then_some(again))
            }
        }
    }

    /// `false` once the reader has gone.
    async fn send(&self, lines: Vec<v1::LogLine>) -> bool {
        for line in lines {
            if self.out.send(Ok(v1::ReadLogsResponse { line: Some(line) })).await.is_err() {
                return false;
            }
        }
        true
    }
}
