//! The object store: keys in memory, and a curator's part in removing those of deleted jobs; what it is told to remove is decided by the
//! real controller.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crescendo_core::object_keys;
use crescendo_node::session::call::Controllers;
use crescendo_proto::v1;
use crescendo_proto::v1::object_service_client::ObjectServiceClient;
use tokio::time::{sleep, timeout};

use crate::checker::{Checker, StoredObject};
use crate::rng::SharedRng;

/// What the mark in its root says.
pub const STORE_ID: &str = "simulated";
/// Objects that are judged at a time.
const PAGE: usize = 3;
/// Limit of the controller's answer, as shipped.
const JUDGE_DEADLINE: Duration = Duration::from_secs(60);

/// Clones are the same store.
#[derive(Clone)]
pub struct Objects {
    keys: Arc<Mutex<BTreeSet<String>>>,
    /// Those of jobs that were being deleted already: a node that nobody sees may write them.
    late: Arc<Mutex<BTreeSet<String>>>,
    checker: Checker,
}

impl Objects {
    pub fn new(checker: Checker) -> Self {
        Self { keys: Arc::default(), late: Arc::default(), checker }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn put(&self, key: String) {
        if object_keys::job_of(&key).is_some_and(|job| self.checker.is_deleted(job)) {
            self.late.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone());
        }
        self.lock().insert(key);
    }

    /// The next keys behind one, below a folder.
    fn page(&self, folder: &str, after: Option<&str>) -> Vec<String> {
        let folder = format!("{folder}/");
        let from = after.map_or(Bound::Included(folder.as_str()), Bound::Excluded);
        let keys = self.lock();
        let found = keys.range::<str, _>((from, Bound::Unbounded));
        found.take_while(|key| key.starts_with(&folder)).take(PAGE).cloned().collect()
    }

    fn remove(&self, key: &str) {
        if self.lock().remove(key) {
            self.checker.removed(key);
        }
    }

    /// Everything of a job.
    pub fn of_job(&self, job: &str) -> Vec<StoredObject> {
        let folder = format!("jobs/{job}/");
        let late = self.late.lock().unwrap_or_else(PoisonError::into_inner);
        let keys = self.lock();
        let own = keys.iter().filter(|key| key.starts_with(&folder));
        own.map(|key| StoredObject { key: key.clone(), is_late: late.contains(key) }).collect()
    }
}

/// Carries out an order as a curator does: it lists, asks, removes, and says what came of it.
pub async fn collect(
    objects: Objects,
    controllers: Controllers,
    checker: Checker,
    rng: SharedRng,
    order: v1::CollectObjects,
) {
    let mark = v1::StoreMark {
        cluster_id: checker.cluster_id().unwrap_or_default(),
        store_id: STORE_ID.to_owned(),
        began_empty: true,
    };
    let said = v1::JudgeObjectsRequest { collect_id: order.collect_id, ..Default::default() };
    let (mut after, mut removed) = (None, 0);
    loop {
        sleep(Duration::from_millis(rng.draw(|rng| rng.between(20, 300)))).await;
        let page = objects.page(&order.prefix, after.as_deref());
        let is_last = page.is_empty();
        let object =
            |key: &String| v1::ListedObject { key: key.clone(), size_bytes: 10, modified_unix_millis: 1 };
        let ask = v1::JudgeObjectsRequest {
            listed: page.iter().map(object).collect(),
            mark: Some(mark.clone()),
            removed_objects: removed,
            removed_bytes: removed * 10,
            done: is_last,
            ..said.clone()
        };
        let mut client = ObjectServiceClient::new(controllers.channel());
        // Whoever asked begins anew.
        let Ok(Ok(judged)) = timeout(JUDGE_DEADLINE, client.judge_objects(ask)).await else { return };
        if is_last {
            return;
        }
        removed = 0;
        for index in judged.into_inner().leftovers {
            let Some(key) = usize::try_from(index).ok().and_then(|index| page.get(index)) else { continue };
            if !order.dry_run {
                sleep(Duration::from_millis(rng.draw(|rng| rng.between(1, 50)))).await;
                objects.remove(key);
                removed += 1;
            }
        }
        after = page.last().cloned();
    }
}
