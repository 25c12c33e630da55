//! Collections of leftovers, and of the files of jobs that are deleted; one at a time of each kind: a curator lists and deletes, the
//! engine judges, who has asked is told.
//!
//! ```text
//!   who asks ◀─ Collecting ◀─ channel ◀─ judged ◀─ JudgeObjects ─ curator ◀─ CollectObjects ─ engine
//! ```

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crescendo_core::leftovers::{ListedObject, Wanted};
use crescendo_node::runtime::random;
use crescendo_proto::v1;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::engine::{ObjectRequest, Request};
use crate::leadership::EngineHandle;
use crate::metrics::Metrics;

/// Pages that wait for whoever has asked.
const WAITING_PAGES: usize = 4;
/// Limit of the wait for the curator's next word: it lists and deletes a page in between.
const WORD_DEADLINE: Duration = Duration::from_secs(300);
/// Limit of one collection.
const COLLECT_DEADLINE: Duration = Duration::from_secs(6 * 3600);

/// What is told of a collection; a summary or a failure is the last.
#[derive(Debug)]
pub enum Told {
    Page(Vec<ListedObject>),
    Summary(v1::CollectSummary),
    Failed(String),
}

/// The collections that are under way. Cheap to clone.
#[derive(Clone)]
pub struct Collections {
    running: Arc<Mutex<Vec<Running>>>,
    metrics: Metrics,
}

struct Running {
    id: String,
    wanted: Wanted,
    to: mpsc::Sender<Told>,
    so_far: v1::CollectSummary,
}

/// Kinds of collections, which do not wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Leftovers,
    Deletion,
    /// What a deletion would remove.
    Count,
}

impl Running {
    fn kind(&self) -> Kind {
        kind_of(&self.wanted)
    }
}

fn kind_of(wanted: &Wanted) -> Kind {
    match wanted {
        Wanted::OfAllJobs | Wanted::OfOneJob => Kind::Leftovers,
        Wanted::Deletion { dry_run: false, .. } => Kind::Deletion,
        Wanted::Deletion { dry_run: true, .. } => Kind::Count,
    }
}

/// The part of whoever has asked. When it goes, the collection ends at the curator's next word.
pub struct Collecting {
    collections: Collections,
    /// Known to the curator alone that does it.
    pub id: String,
    told: mpsc::Receiver<Told>,
    until: tokio::time::Instant,
}

impl Collections {
    pub fn new(metrics: Metrics) -> Self {
        Self { running: Arc::default(), metrics }
    }

    /// Begins one; none while another of its kind is under way.
    pub fn begin(&self, wanted: Wanted) -> Option<Collecting> {
        let mut running = self.running();
        if running.iter().any(|other| other.kind() == kind_of(&wanted)) {
            return None;
        }
        let (to, told) = mpsc::channel(WAITING_PAGES);
        let id = random::id();
        running.push(Running { id: id.clone(), wanted, to, so_far: v1::CollectSummary::default() });
        let until = tokio::time::Instant::now() + COLLECT_DEADLINE;
        Some(Collecting { collections: self.clone(), id, told, until })
    }

    /// What this one is to collect, if it is the one that is under way.
    pub fn wanted(&self, id: &str) -> Option<Wanted> {
        self.running().iter().find(|running| running.id == id).map(|running| running.wanted.clone())
    }

    /// Takes note of what the curator has said and of what was judged, and tells it on. `CANCELLED` once nobody waits for it.
    pub async fn judged(&self, said: v1::JudgeObjectsRequest, leftovers: &[usize]) -> Result<(), Status> {
        let (to, tells) = self.note(said, leftovers)?;
        for told in tells {
            let gone = |_| Status::cancelled("nobody waits for this collection any more");
            to.send(told).await.map_err(gone)?;
        }
        Ok(())
    }

    fn note(
        &self,
        said: v1::JudgeObjectsRequest,
        leftovers: &[usize],
    ) -> Result<(mpsc::Sender<Told>, Vec<Told>), Status> {
        let mut running = self.running();
        let running = running
            .iter_mut()
            .find(|running| running.id == said.collect_id)
            .ok_or_else(|| Status::not_found("this collection is over"))?;
        let kind = running.kind();
        let so_far = &mut running.so_far;
        let page: Vec<ListedObject> =
            leftovers.iter().filter_map(|index| said.listed.get(*index)).map(listed_object).collect();
        so_far.listed_objects = so_far.listed_objects.saturating_add(said.listed.len() as u64);
        so_far.leftover_objects = so_far.leftover_objects.saturating_add(page.len() as u64);
        for object in &page {
            so_far.leftover_bytes = so_far.leftover_bytes.saturating_add(object.size_bytes);
        }
        so_far.removed_objects = so_far.removed_objects.saturating_add(said.removed_objects);
        so_far.removed_bytes = so_far.removed_bytes.saturating_add(said.removed_bytes);
        so_far.failed_objects = so_far.failed_objects.saturating_add(said.failed_objects);
        if so_far.failure.is_empty() {
            so_far.failure = said.failure;
        }
        let Metrics { leftovers_removed, leftover_bytes_removed, leftovers_failed, .. } = &self.metrics;
        let Metrics { deleted_objects, deleted_bytes, deleted_failed, .. } = &self.metrics;
        let (objects, bytes, failed) = match kind {
            Kind::Leftovers => (leftovers_removed, leftover_bytes_removed, leftovers_failed),
            Kind::Deletion | Kind::Count => (deleted_objects, deleted_bytes, deleted_failed),
        };
        objects.inc_by(said.removed_objects);
        bytes.inc_by(said.removed_bytes);
        failed.inc_by(said.failed_objects);
        let mut tells = Vec::new();
        if !page.is_empty() {
            tells.push(Told::Page(page));
        }
        if !said.error.is_empty() {
            tells.push(Told::Failed(said.error));
        } else if said.done {
            tells.push(Told::Summary(so_far.clone()));
        }
        Ok((running.to.clone(), tells))
    }

    fn running(&self) -> MutexGuard<'_, Vec<Running>> {
        // A panic elsewhere leaves nothing half done here.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// As the engine judges it.
pub fn listed_object(object: &v1::ListedObject) -> ListedObject {
    ListedObject {
        key: object.key.clone(),
        size_bytes: object.size_bytes,
        modified: crescendo_core::ids::Timestamp(object.modified_unix_millis),
    }
}

impl Drop for Collecting {
    fn drop(&mut self) {
        self.collections.running().retain(|running| running.id != self.id);
    }
}

impl Collecting {
    /// What has come of it so far.
    pub fn so_far(&self) -> v1::CollectSummary {
        let running = self.collections.running();
        running
            .iter()
            .find(|running| running.id == self.id)
            .map(|found| found.so_far.clone())
            .unwrap_or_default()
    }

    /// What is told next; an error if the curator falls silent, or the collection takes too long.
    pub async fn next(&mut self) -> Result<Told, Status> {
        let until = self.until.min(tokio::time::Instant::now() + WORD_DEADLINE);
        match tokio::time::timeout_at(until, self.told.recv()).await {
            Ok(Some(told)) => Ok(told),
            Ok(None) => Err(Status::unavailable("the collection has ended early")),
            Err(_) => Err(Status::unavailable(
                "the curator that collects says nothing any more; what it has not removed is left for the next time",
            )),
        }
    }
}

/// Collects by itself, on whichever controller leads: after an hour (or `every`, if that is less), then each `every`.
pub async fn collect_now_and_then(
    collections: Collections,
    engine: EngineHandle,
    every: Duration,
    stop: CancellationToken,
) {
    const FIRST_AFTER: Duration = Duration::from_secs(3600);
    let mut wait = every.min(FIRST_AFTER);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
        wait = every;
        let collected = tokio::select! {
            () = stop.cancelled() => return,
            collected = engine.as_leader(collect_all(&collections, &engine)) => collected,
        };
        match collected {
            None => {}
            Some(Ok(summary)) => tell(&summary),
            Some(Err(status)) => {
                tracing::warn!(%status, "leftovers in the object store are not collected; it is tried again");
            }
        }
    }
}

async fn collect_all(collections: &Collections, engine: &EngineHandle) -> Result<v1::CollectSummary, Status> {
    let mut collecting = collections
        .begin(Wanted::OfAllJobs)
        .ok_or_else(|| Status::resource_exhausted("another collection is under way"))?;
    let collect_id = collecting.id.clone();
    engine
        .ask(|reply| {
            Request::Objects(ObjectRequest::CollectLeftovers { collect_id, job: None, dry_run: false, reply })
        })
        .await?;
    loop {
        match collecting.next().await? {
            Told::Page(_) => {}
            Told::Summary(summary) => return Ok(summary),
            Told::Failed(reason) => return Err(Status::unavailable(reason)),
        }
    }
}

/// Says in the log what a collection came to.
pub fn tell(summary: &v1::CollectSummary) {
    let v1::CollectSummary {
        listed_objects, removed_objects, removed_bytes, failed_objects, failure, ..
    } = summary;
    if *failed_objects > 0 {
        tracing::warn!(
            failed_objects,
            failure,
            "leftovers in the object store cannot be removed; it is tried again the next time"
        );
    }
    tracing::info!(
        listed_objects,
        removed_objects,
        removed_bytes,
        failed_objects,
        "leftovers in the object store are collected"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collections() -> Collections {
        Collections::new(Metrics::register(&prometheus::Registry::new()).expect("a new registry"))
    }

    fn object(key: &str, size_bytes: u64) -> v1::ListedObject {
        v1::ListedObject { key: key.into(), size_bytes, modified_unix_millis: 1 }
    }

    #[tokio::test]
    async fn what_a_curator_says_adds_up_and_is_told() {
        let collections = collections();
        let mut collecting = collections.begin(Wanted::OfAllJobs).expect("none is under way");
        assert!(collections.begin(Wanted::OfAllJobs).is_none(), "one at a time");
        let collect_id = collecting.id.clone();
        let page = v1::JudgeObjectsRequest {
            collect_id: collect_id.clone(),
            listed: vec![object("a", 5), object("b", 7), object("c", 11)],
            ..Default::default()
        };
        collections.judged(page, &[0, 2]).await.expect("it is under way");
        let last = v1::JudgeObjectsRequest {
            collect_id: collect_id.clone(),
            removed_objects: 1,
            removed_bytes: 5,
            failed_objects: 1,
            failure: "c: denied".into(),
            done: true,
            ..Default::default()
        };
        collections.judged(last.clone(), &[]).await.expect("it is under way");
        let Told::Page(page) = collecting.next().await.expect("a page") else { panic!("no page") };
        assert_eq!(page.iter().map(|object| object.key.as_str()).collect::<Vec<_>>(), ["a", "c"]);
        let Told::Summary(summary) = collecting.next().await.expect("a summary") else { panic!("none") };
        let expected = v1::CollectSummary {
            listed_objects: 3,
            leftover_objects: 2,
            leftover_bytes: 16,
            removed_objects: 1,
            removed_bytes: 5,
            failed_objects: 1,
            failure: "c: denied".into(),
        };
        assert_eq!(summary, expected);
        drop(collecting);
        let over = collections.judged(last, &[]).await.expect_err("it is over");
        assert_eq!(over.code(), tonic::Code::NotFound);
        assert!(collections.begin(Wanted::OfAllJobs).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_curator_ends_the_wait_and_not_the_next_collection() {
        let collections = collections();
        let mut collecting = collections.begin(Wanted::OfAllJobs).expect("none is under way");
        assert_eq!(collecting.next().await.expect_err("silence").code(), tonic::Code::Unavailable);
        drop(collecting);
        assert!(collections.begin(Wanted::OfAllJobs).is_some());
    }
}
