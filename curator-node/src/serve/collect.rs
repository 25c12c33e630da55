//! Leftovers in the object store, and files of jobs that are deleted, on the controller's command: what lies there is listed here, the
//! controller says which of it is to go, and that is deleted here.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crescendo_core::leftovers::MAX_PAGE;
use crescendo_core::object_keys;
use crescendo_node::objects::mark::{Mark, read_mark};
use crescendo_node::objects::torn::torn_files;
use crescendo_node::objects::{self, with_causes};
use crescendo_node::runtime::supervise::Tasks;
use crescendo_node::session::call::Controllers;
use crescendo_proto::v1::object_service_client::ObjectServiceClient;
use crescendo_proto::v1::{CollectObjects, JudgeObjectsRequest, ListedObject, StoreMark};
use futures::StreamExt as _;
use futures::stream::{BoxStream, Fuse};
use object_store::path::Path as Key;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt as _};
use tokio::sync::Semaphore;
use tonic::{Code, Status};

/// Orders that are carried out at a time: one may look through the whole store, and others remove what one job has left.
const ORDERS_AT_A_TIME: usize = 3;
/// Limit of the wait for the end of orders before, whose controller is gone.
const TURN_DEADLINE: Duration = Duration::from_secs(60);
/// Limit of the store's next entry, and of a look for halves of files.
const LIST_DEADLINE: Duration = Duration::from_secs(120);
/// Limit of one deletion.
const DELETE_DEADLINE: Duration = Duration::from_secs(30);
/// Deletions at a time.
const DELETES_AT_A_TIME: usize = 8;
/// Objects that are deleted between two words to the controller, which waits for them.
const DELETE_BATCH: usize = 64;
/// Limit of the controller's answer.
const JUDGE_DEADLINE: Duration = Duration::from_secs(60);
/// Halves of files that one collection looks at.
const MAX_TORN: usize = 10_000;

/// Looks for leftovers and files of deleted jobs, a few orders at a time. Cheap to clone.
#[derive(Clone)]
pub struct Collector {
    controllers: Controllers,
    tasks: Tasks,
    turn: Arc<Semaphore>,
}

/// What was listed, with its place where it is no object.
#[derive(Clone)]
struct Listed {
    object: ListedObject,
    torn: Option<PathBuf>,
}

/// Where it is collected.
struct Place<'a> {
    order: &'a CollectObjects,
    store: Arc<dyn ObjectStore>,
    mark: Mark,
}

/// What was removed since the controller was told.
#[derive(Default)]
struct Removed {
    objects: u64,
    bytes: u64,
    failed: u64,
    failure: String,
}

impl Collector {
    pub fn new(controllers: Controllers, tasks: Tasks) -> Self {
        Self { controllers, tasks, turn: Arc::new(Semaphore::new(ORDERS_AT_A_TIME)) }
    }

    /// Begins with an order, on a task of its own.
    pub fn collect(&self, order: CollectObjects) {
        let (collector, stop) = (self.clone(), self.tasks.stop_token());
        self.tasks.spawn(async move {
            let collecting = async {
                let turn = tokio::time::timeout(TURN_DEADLINE, collector.turn.acquire()).await;
                if turn.is_err() {
                    tracing::warn!("as many orders to collect are under way as may be; this one is dropped");
                    return;
                }
                match collector.run(&order).await {
                    Ok(()) => tracing::info!(prefix = order.prefix, "leftovers are collected"),
                    Err(status) => {
                        tracing::warn!(prefix = order.prefix, %status, "leftovers are not collected")
                    }
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = collecting => {}
            }
        });
    }

    async fn run(&self, order: &CollectObjects) -> Result<(), Status> {
        match self.pages(order).await {
            Ok(last) => {
                let done = JudgeObjectsRequest { done: true, ..said(&order.collect_id, last) };
                self.judge(done).await.map(drop)
            }
            Err(CollectError::Store(error)) => {
                tracing::warn!(error, "the object store cannot be listed");
                let failed = JudgeObjectsRequest { error, ..said(&order.collect_id, Removed::default()) };
                self.judge(failed).await.map(drop)
            }
            Err(CollectError::Controller(status)) if status.code() == Code::FailedPrecondition => {
                let error = status.message().to_owned();
                let failed = JudgeObjectsRequest { error, ..said(&order.collect_id, Removed::default()) };
                self.judge(failed).await.map(drop)
            }
            Err(CollectError::Controller(status)) => Err(status),
        }
    }

    /// Goes through all pages; gives what was removed since the controller was told last.
    async fn pages(&self, order: &CollectObjects) -> Result<Removed, CollectError> {
        let of_jobs =
            order.prefix == object_keys::JOBS || object_keys::job_of(&format!("{}/", order.prefix)).is_some();
        if !of_jobs {
            return Err(CollectError::Store(format!("{} is not a folder of jobs", order.prefix)));
        }
        let store = objects::open(&order.object_store_url)
            .map_err(|error| CollectError::Store(with_causes(&error)))?;
        let mark = match read_mark(store.as_ref()).await {
            Ok(Some(mark)) => mark,
            Ok(None) => return Err(CollectError::Store("the object store's root has no mark".to_owned())),
            Err(error) => return Err(CollectError::Store(error.to_string())),
        };
        let place = Place { order, store, mark };
        let store = &place.store;
        let mut removed = Removed::default();
        // A list that has ended must not be asked again, and the last page's end is only seen by the next.
        let mut listing = store.list(Some(&Key::from(order.prefix.as_str()))).fuse();
        loop {
            let page = next_page(&mut listing).await?;
            if page.is_empty() {
                break;
            }
            removed = self.take(&place, page, removed).await?;
        }
        let mut torn = find_torn(order).await?.into_iter().peekable();
        while torn.peek().is_some() {
            let page = torn.by_ref().take(MAX_PAGE).collect();
            removed = self.take(&place, page, removed).await?;
        }
        Ok(removed)
    }

    /// Has a page judged, and removes its leftovers if that was ordered.
    async fn take(
        &self,
        place: &Place<'_>,
        page: Vec<Listed>,
        removed: Removed,
    ) -> Result<Removed, CollectError> {
        let listed = page.iter().map(|listed| listed.object.clone()).collect();
        let Place { order, store, mark } = place;
        let Mark { cluster, store: of_store, began_empty } = mark.clone();
        let mark = Some(StoreMark { cluster_id: cluster, store_id: of_store, began_empty });
        let ask = JudgeObjectsRequest { listed, mark, ..said(&order.collect_id, removed) };
        let leftovers = self.judge(ask).await.map_err(CollectError::Controller)?;
        if order.dry_run {
            return Ok(Removed::default());
        }
        let is_left = |index: usize| u32::try_from(index).is_ok_and(|index| leftovers.contains(&index));
        let left = page.into_iter().enumerate().filter(|(index, _)| is_left(*index));
        let left: Vec<Listed> = left.map(|(_, listed)| listed).collect();
        let mut removed = Removed::default();
        for batch in left.chunks(DELETE_BATCH) {
            if removed.objects + removed.failed > 0 {
                // The controller hears of the batch before; and says if the collection is over.
                let told = self.judge(said(&order.collect_id, std::mem::take(&mut removed))).await;
                told.map_err(CollectError::Controller)?;
            }
            remove(store, batch, &mut removed).await;
        }
        Ok(removed)
    }

    async fn judge(&self, ask: JudgeObjectsRequest) -> Result<BTreeSet<u32>, Status> {
        let mut client = ObjectServiceClient::new(self.controllers.channel());
        let answer = tokio::time::timeout(JUDGE_DEADLINE, client.judge_objects(ask)).await;
        let late = |_| Status::deadline_exceeded(format!("no answer within {JUDGE_DEADLINE:?}"));
        Ok(answer.map_err(late)??.into_inner().leftovers.into_iter().collect())
    }
}

/// Why a collection ends early.
enum CollectError {
    Store(String),
    /// The controller is out of reach, leads no more, or nobody waits for it.
    Controller(Status),
}

fn said(collect_id: &str, removed: Removed) -> JudgeObjectsRequest {
    let Removed { objects, bytes, failed, failure } = removed;
    JudgeObjectsRequest {
        collect_id: collect_id.to_owned(),
        removed_objects: objects,
        removed_bytes: bytes,
        failed_objects: failed,
        failure,
        ..JudgeObjectsRequest::default()
    }
}

/// The next entries of a list, as many as are judged at a time; none at its end.
async fn next_page(
    listing: &mut Fuse<BoxStream<'static, object_store::Result<ObjectMeta>>>,
) -> Result<Vec<Listed>, CollectError> {
    let mut page = Vec::new();
    while page.len() < MAX_PAGE {
        let late =
            |_| CollectError::Store(format!("the object store lists nothing within {LIST_DEADLINE:?}"));
        match tokio::time::timeout(LIST_DEADLINE, listing.next()).await.map_err(late)? {
            Some(Ok(found)) => page.push(Listed {
                object: ListedObject {
                    key: found.location.to_string(),
                    size_bytes: found.size,
                    modified_unix_millis: u64::try_from(found.last_modified.timestamp_millis()).unwrap_or(0),
                },
                torn: None,
            }),
            // It was deleted in between, with its folder.
            Some(Err(object_store::Error::NotFound { .. })) => {}
            Some(Err(error)) => return Err(CollectError::Store(with_causes(&error))),
            None => break,
        }
    }
    Ok(page)
}

async fn find_torn(order: &CollectObjects) -> Result<Vec<Listed>, CollectError> {
    let (url, prefix) = (order.object_store_url.clone(), order.prefix.clone());
    let looking = tokio::task::spawn_blocking(move || torn_files(&url, &prefix, MAX_TORN));
    let found = tokio::time::timeout(LIST_DEADLINE, looking).await;
    let found = found.map_err(|_| CollectError::Store(format!("not read within {LIST_DEADLINE:?}")))?;
    let found = found.map_err(|error| CollectError::Store(error.to_string()))?;
    let found = found.map_err(|error| CollectError::Store(with_causes(&error)))?;
    let millis = |at: SystemTime| at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
    let listed = |torn: objects::torn::TornFile| Listed {
        object: ListedObject {
            key: torn.key,
            size_bytes: torn.size_bytes,
            modified_unix_millis: u64::try_from(millis(torn.modified)).unwrap_or(0),
        },
        torn: Some(torn.path),
    };
    Ok(found.into_iter().map(listed).collect())
}

async fn remove(store: &Arc<dyn ObjectStore>, batch: &[Listed], removed: &mut Removed) {
    let deletions: Vec<_> = batch.iter().map(|listed| delete(store.clone(), listed.clone())).collect();
    let mut outcomes = futures::stream::iter(deletions).buffer_unordered(DELETES_AT_A_TIME);
    while let Some((object, outcome)) = outcomes.next().await {
        match outcome {
            Ok(()) => {
                tracing::debug!(key = object.key, "a leftover is removed");
                removed.objects += 1;
                removed.bytes = removed.bytes.saturating_add(object.size_bytes);
            }
            Err(reason) => {
                tracing::warn!(key = object.key, reason, "a leftover cannot be removed");
                removed.failed += 1;
                if removed.failure.is_empty() {
                    removed.failure = format!("{}: {reason}", object.key);
                }
            }
        }
    }
}

async fn delete(store: Arc<dyn ObjectStore>, listed: Listed) -> (ListedObject, Result<(), String>) {
    let Listed { object, torn } = listed;
    let deleting = async {
        match torn {
            Some(path) => tokio::fs::remove_file(path).await.map_err(|error| error.to_string()),
            None => match store.delete(&Key::from(object.key.as_str())).await {
                // Whoever else has deleted it.
                Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
                Err(error) => Err(with_causes(&error)),
            },
        }
    };
    let outcome = match tokio::time::timeout(DELETE_DEADLINE, deleting).await {
        Ok(outcome) => outcome,
        Err(_) => Err(format!("not deleted within {DELETE_DEADLINE:?}")),
    };
    (object, outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(key: &str, torn: Option<PathBuf>) -> Listed {
        let object = ListedObject { key: key.into(), size_bytes: 3, modified_unix_millis: 1 };
        Listed { object, torn }
    }

    #[tokio::test]
    async fn what_cannot_be_removed_is_told_and_the_rest_goes() {
        let folder = tempfile::tempdir().unwrap();
        let store = objects::open(&format!("file://{}", folder.path().display())).unwrap();
        for key in ["jobs/j/s/a.tar", "jobs/j/s/kept.tar", "jobs/j/folder.tar/x"] {
            store.put(&key.into(), "abc".into()).await.unwrap();
        }
        let half = folder.path().join("jobs/j/s/half.tar#1");
        std::fs::write(&half, "abc").unwrap();
        let batch = [
            listed("jobs/j/s/a.tar", None),
            // Another has removed it.
            listed("jobs/j/s/gone.tar", None),
            // Files alone are removed.
            listed("jobs/j/folder.tar", None),
            listed("jobs/j/s/half.tar#1", Some(half.clone())),
        ];
        let mut removed = Removed::default();
        remove(&store, &batch, &mut removed).await;
        assert_eq!((removed.objects, removed.bytes, removed.failed), (3, 9, 1), "{}", removed.failure);
        assert!(removed.failure.starts_with("jobs/j/folder.tar: "), "{}", removed.failure);
        assert!(!half.exists());
        let mut left = next_page(&mut store.list(None).fuse()).await.ok().expect("it is listed");
        left.sort_by(|a, b| a.object.key.cmp(&b.object.key));
        let left: Vec<&str> = left.iter().map(|listed| listed.object.key.as_str()).collect();
        assert_eq!(left, ["jobs/j/folder.tar/x", "jobs/j/s/kept.tar"]);
    }

    /// A bucket's list panics then; a folder's ends once more.
    #[tokio::test]
    async fn a_list_that_has_ended_is_not_asked_again() {
        let mut has_ended = false;
        let list = futures::stream::poll_fn(move |_| {
            assert!(!has_ended, "it has ended");
            has_ended = true;
            std::task::Poll::Ready(None)
        });
        let mut listing = list.boxed().fuse();
        for _ in 0..2 {
            let page = next_page(&mut listing).await.ok().expect("it is listed");
            assert!(page.is_empty());
        }
    }
}
