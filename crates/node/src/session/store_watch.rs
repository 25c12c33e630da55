//! Looks, again and again, whether the object store that the controller names is the one that it should be.

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::objects::mark::{Expected, Mark, MarkError, check_mark};
use crate::objects::{self, with_causes};
use crate::session::health::HealthReport;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(30);
/// Limit of one look.
const DEADLINE: Duration = Duration::from_secs(20);
/// Looks in a row without an answer after which the store cannot be used.
const MOST_SILENT: u32 = 3;

/// The root that the controller names, and what its mark has to say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreRoot {
    pub url: String,
    pub expected: Expected,
}

/// Where a session puts the root that the controller has named. Clones share it.
#[derive(Clone, Debug)]
pub struct NamedRoot(watch::Sender<Option<StoreRoot>>);

impl Default for NamedRoot {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl NamedRoot {
    /// A controller of before names no cluster: then there is nothing to look for.
    pub(crate) fn name(&self, url: &str, cluster: &str, store: &str) {
        let store = Some(store).filter(|store| !store.is_empty()).map(str::to_owned);
        let expected = Expected { cluster: cluster.to_owned(), store };
        let named = (!cluster.is_empty()).then(|| StoreRoot { url: url.to_owned(), expected });
        self.0.send_if_modified(|now| {
            let is_news = *now != named;
            *now = named;
            is_news
        });
    }

    /// As it was named last.
    pub fn now(&self) -> Option<StoreRoot> {
        self.0.borrow().clone()
    }
}

/// Looks at the named root whenever it changes and every half minute, and says in `health` what it finds, until `stop`.
pub async fn watch_store(root: NamedRoot, health: HealthReport, stop: CancellationToken) {
    let mut named = root.0.subscribe();
    let mut watched = Watched::default();
    loop {
        let root = named.borrow_and_update().clone();
        if let Some(root) = root {
            watched.see(root, &health).await;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = named.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

/// What is known from looks before.
#[derive(Debug, Default)]
struct Watched {
    /// The root with the mark that was found there: it is missed when it is gone, whoever made it.
    found: Option<StoreRoot>,
    /// Looks in a row without an answer.
    silent: u32,
}

impl Watched {
    async fn see(&mut self, mut root: StoreRoot, health: &HealthReport) {
        let found = self
            .found
            .as_ref()
            .filter(|found| found.url == root.url && found.expected.cluster == root.expected.cluster);
        if root.expected.store.is_none() {
            root.expected.store = found.and_then(|found| found.expected.store.clone());
        }
        let outcome = look(&root).await;
        self.silent = if outcome.as_ref().is_err_and(MarkError::is_passing) { self.silent + 1 } else { 0 };
        if let Ok(mark) = &outcome {
            root.expected.store = Some(mark.store.clone());
            let is_news = self.found.as_ref() != Some(&root);
            if is_news && mark.cluster != root.expected.cluster {
                let (url, cluster) = (&root.url, &mark.cluster);
                tracing::warn!(
                    url,
                    cluster,
                    "the object store was marked by another cluster: no leftovers are collected in it"
                );
            }
            self.found = Some(root.clone());
        }
        tell(health, &root, outcome, self.silent);
    }
}

async fn look(root: &StoreRoot) -> Result<Mark, MarkError> {
    let store = objects::open(&root.url).map_err(|error| MarkError::Access(with_causes(&error)))?;
    match tokio::time::timeout(DEADLINE, check_mark(store.as_ref(), &root.expected)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(MarkError::Access(format!("it does not answer within {} s", DEADLINE.as_secs()))),
    }
}

fn tell(health: &HealthReport, root: &StoreRoot, outcome: Result<Mark, MarkError>, silent: u32) {
    match outcome {
        Ok(mark) => {
            if !health.now().store_fault.is_empty() {
                tracing::info!(url = root.url, "the object store can be used again");
            }
            health.update(|health| {
                health.store_fault.clear();
                health.store_id = mark.store;
            });
        }
        Err(error) if error.is_passing() && silent < MOST_SILENT => {
            tracing::warn!(url = root.url, %error, "the object store's mark cannot be read; it is tried again");
        }
        Err(error) => {
            let fault = format!("{}: {error}", root.url);
            if health.now().store_fault != fault {
                tracing::error!(fault, "the object store cannot be used from here");
            }
            health.update(|health| health.store_fault = fault);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_root_that_vanishes_is_told_and_one_that_comes_back_too() {
        let folder = tempfile::tempdir().unwrap();
        let (data, away) = (folder.path().join("data"), folder.path().join("away"));
        let url = format!("file://{}", data.display());
        let health = HealthReport::default();
        // The controller that has named it has not heard of the mark yet.
        let root = StoreRoot { url, expected: Expected { cluster: "a".into(), store: None } };
        let mut watched = Watched::default();
        watched.see(root.clone(), &health).await;
        let first = health.now();
        assert!(first.store_fault.is_empty() && !first.store_id.is_empty(), "{first:?}");
        // As if it were unmounted: an empty folder is there.
        std::fs::rename(&data, &away).unwrap();
        watched.see(root.clone(), &health).await;
        let gone = health.now();
        assert!(gone.store_fault.contains("is it mounted?"), "{gone:?}");
        std::fs::remove_dir_all(&data).unwrap();
        std::fs::rename(&away, &data).unwrap();
        watched.see(root, &health).await;
        assert_eq!(health.now(), first);
    }

    #[test]
    fn a_store_that_does_not_answer_for_a_moment_is_no_fault() {
        let (health, root) = (HealthReport::default(), StoreRoot::default());
        let silence = || Err(MarkError::Access("no answer".into()));
        for silent in 1..MOST_SILENT {
            tell(&health, &root, silence(), silent);
            assert_eq!(health.now().store_fault, "");
        }
        tell(&health, &root, silence(), MOST_SILENT);
        assert!(health.now().store_fault.ends_with("no answer"));
    }

    #[test]
    fn a_controller_of_before_names_no_root() {
        let root = NamedRoot::default();
        root.name("file:///x", "", "");
        assert_eq!(root.now(), None);
        root.name("file:///x", "a", "");
        assert_eq!(root.now().expect("named").expected, Expected { cluster: "a".into(), store: None });
    }
}
