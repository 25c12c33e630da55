//! Money that a job has spent at an endpoint, over all its curators.
//!
//! Every process writes what it has spent to an object of its own,
//! `jobs/<job>/endpoints/<name>/spent/<process>.json`, after each answer, and adds up the others' from time to time.
//! So the limit can be passed by what the other curators spend between two looks, never by more; what this process
//! spends, and has under way, is counted at once.

use super::EndpointError;
use super::response_cache::read_bounded;
use super::usage::Usage;
use crescendo_core::object_keys;
use crescendo_core::spec::EndpointSpec;
use crescendo_node::runtime::backoff::random;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _, PutPayload};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Time between two looks at what others have spent.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// Limit of one access.
const DEADLINE: Duration = Duration::from_secs(30);
/// Largest record that is read.
const MAX_RECORD_BYTES: u64 = 4096;

/// An amount of money, in millionths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Spent(u64);

impl Spent {
    /// What tokens cost at a price per million, rounded up.
    fn of(tokens: u64, price: f64) -> Spent {
        // A price per million tokens is, per token, the same number of millionths. Casts of floats saturate.
        Spent((tokens as f64 * price.max(0.0)).ceil() as u64)
    }

    fn plus(self, other: Spent) -> Spent {
        Spent(self.0.saturating_add(other.0))
    }

    fn minus(self, other: Spent) -> Spent {
        Spent(self.0.saturating_sub(other.0))
    }

    /// The cost of a request.
    pub fn on(usage: Usage, input_price: f64, output_price: f64) -> Spent {
        Spent::of(usage.input, input_price).plus(Spent::of(usage.output, output_price))
    }
}

impl fmt::Display for Spent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:04}", self.0 / 1_000_000, self.0 % 1_000_000 / 100)
    }
}

#[derive(Debug, Default)]
struct Sums {
    here: Spent,
    /// Of requests under way.
    reserved: Spent,
    elsewhere: Spent,
    looked: Option<Instant>,
    written: Spent,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    /// Millionths of the money of the prices.
    spent_millionths: Spent,
}

/// What is spent and what may be.
#[derive(Debug)]
pub struct SpendLedger {
    name: String,
    input_price: f64,
    output_price: f64,
    limit: Option<Spent>,
    objects: Arc<dyn ObjectStore>,
    folder: Path,
    own: Path,
    sums: Mutex<Sums>,
    /// One writer at a time, so that an older sum never replaces a newer one.
    writing: Semaphore,
}

/// Money kept back for a request under way; given back when it is dropped.
#[derive(Debug)]
pub struct Reservation<'a> {
    ledger: &'a SpendLedger,
    amount: Spent,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut sums = self.ledger.sums();
        sums.reserved = sums.reserved.minus(self.amount);
    }
}

impl SpendLedger {
    pub fn new(spec: &EndpointSpec, objects: Arc<dyn ObjectStore>, job_id: &str) -> SpendLedger {
        let folder = object_keys::spending(job_id, &spec.name);
        SpendLedger {
            name: spec.name.clone(),
            input_price: spec.input_price,
            output_price: spec.output_price,
            limit: spec.spend_limit.map(|limit| Spent::of(1_000_000, limit)),
            objects,
            own: Path::from(format!("{folder}/{:016x}{:016x}.json", random(), random())),
            folder: Path::from(folder),
            sums: Mutex::default(),
            writing: Semaphore::new(1),
        }
    }

    fn sums(&self) -> MutexGuard<'_, Sums> {
        // Sums are right after every statement, so a panic elsewhere has spoilt nothing.
        self.sums.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn store(&self, reason: String) -> EndpointError {
        EndpointError::Store { name: self.name.clone(), reason }
    }

    /// Keeps back what a request may cost, or says that there is not so much left.
    pub async fn reserve(&self, expected: Usage) -> Result<Reservation<'_>, EndpointError> {
        let amount = Spent::on(expected, self.input_price, self.output_price);
        let Some(limit) = self.limit else {
            return Ok(Reservation { ledger: self, amount: Spent::default() });
        };
        let stale = self.sums().looked.is_none_or(|looked| looked.elapsed() >= LOOK_EVERY);
        if stale {
            self.look().await.map_err(|reason| self.store(reason))?;
        }
        let mut sums = self.sums();
        let spent = sums.here.plus(sums.elsewhere).plus(sums.reserved);
        if spent.plus(amount) > limit {
            return Err(EndpointError::SpendLimit { name: self.name.clone(), spent, limit });
        }
        sums.reserved = sums.reserved.plus(amount);
        Ok(Reservation { ledger: self, amount })
    }

    /// Adds the tokens of a request.
    pub fn spend(&self, input: u64, output: u64) {
        let cost = Spent::on(Usage { input, output }, self.input_price, self.output_price);
        let mut sums = self.sums();
        sums.here = sums.here.plus(cost);
    }

    /// Spent by this process.
    pub fn spent_here(&self) -> Spent {
        self.sums().here
    }

    /// Makes durable what this process has spent. Without a limit nobody would read it.
    pub async fn write_down(&self) -> Result<(), EndpointError> {
        if self.limit.is_none() {
            return Ok(());
        }
        match tokio::time::timeout(DEADLINE, self.write_sum()).await {
            Ok(outcome) => {
                outcome.map_err(|reason| self.store(format!("cannot write {}: {reason}", self.own)))
            }
            Err(_) => Err(self.store(format!("cannot write {}: no answer within {DEADLINE:?}", self.own))),
        }
    }

    async fn write_sum(&self) -> Result<(), String> {
        // Never closed.
        let _one = self.writing.acquire().await.map_err(|e| e.to_string())?;
        let (here, written) = {
            let sums = self.sums();
            (sums.here, sums.written)
        };
        if here == written {
            return Ok(());
        }
        let bytes = serde_json::to_vec(&Record { spent_millionths: here }).map_err(|e| e.to_string())?;
        self.objects.put(&self.own, PutPayload::from(bytes)).await.map_err(|e| e.to_string())?;
        self.sums().written = here;
        Ok(())
    }

    /// Adds up what others have spent.
    async fn look(&self) -> Result<(), String> {
        let listing = self.objects.list_with_delimiter(Some(&self.folder));
        let listed = match tokio::time::timeout(DEADLINE, listing).await {
            Ok(Ok(listed)) => listed.objects,
            Ok(Err(object_store::Error::NotFound { .. })) => Vec::new(),
            Ok(Err(error)) => return Err(format!("cannot list {}: {error}", self.folder)),
            Err(_) => return Err(format!("cannot list {}: no answer within {DEADLINE:?}", self.folder)),
        };
        let mut elsewhere = Spent::default();
        for object in listed.iter().filter(|object| object.location != self.own) {
            let read = read_bounded(&*self.objects, &object.location, MAX_RECORD_BYTES).await?;
            let Some(bytes) = read else { continue };
            let record: Record =
                serde_json::from_slice(&bytes).map_err(|e| format!("{} is damaged: {e}", object.location))?;
            elsewhere = elsewhere.plus(record.spent_millionths);
        }
        let mut sums = self.sums();
        sums.elsewhere = elsewhere;
        sums.looked = Some(Instant::now());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(limit: Option<f64>) -> EndpointSpec {
        EndpointSpec {
            name: "vlm".into(),
            url: "http://h".into(),
            model: "m".into(),
            key: None,
            concurrency: 1,
            requests_per_minute: 1,
            tokens_per_minute: 1,
            timeout_seconds: 1.0,
            tries: 1,
            max_tokens: 16,
            input_price: 2.0,
            output_price: 8.0,
            spend_limit: limit,
        }
    }

    fn open(root: &std::path::Path, limit: Option<f64>, job: &str) -> SpendLedger {
        let objects = crescendo_node::objects::open(&format!("file://{}", root.display()));
        SpendLedger::new(&spec(limit), objects.expect("open"), job)
    }

    #[test]
    fn money_is_counted_in_millionths_and_rounded_up() {
        assert_eq!(Spent::on(Usage { input: 1000, output: 100 }, 2.5, 10.0), Spent(3500));
        assert_eq!(Spent::of(1, 0.1), Spent(1));
        assert_eq!(Spent::of(u64::MAX, 1e6), Spent(u64::MAX));
        assert_eq!(Spent::of(7, -3.0), Spent(0));
        assert_eq!(Spent(12_345_678).to_string(), "12.3456");
    }

    #[tokio::test]
    async fn the_limit_is_for_all_curators_of_a_job() {
        let folder = tempfile::tempdir().expect("make a folder");
        let request = Usage { input: 1000, output: 250 };
        let (one, other) =
            (open(folder.path(), Some(0.010), "job-1"), open(folder.path(), Some(0.010), "job-1"));
        let reserved = one.reserve(request).await.expect("0.004 of 0.010");
        let second = one.reserve(request).await.expect("0.008 of 0.010");
        let error = one.reserve(request).await.expect_err("0.012 of 0.010");
        assert_eq!(
            error.to_string(),
            "endpoint vlm: the job's spending limit of 0.0100 is reached: 0.0080 are spent or under way"
        );
        drop((reserved, second));
        one.spend(1000, 500);
        one.write_down().await.expect("write");
        // The other has not looked before, and sees it now.
        let _kept = other.reserve(request).await.expect("0.010 of 0.010");
        assert!(other.reserve(Usage { input: 1, output: 0 }).await.is_err());
        // Another job has a limit of its own.
        assert!(open(folder.path(), Some(0.010), "job-2").reserve(request).await.is_ok());
    }

    #[tokio::test]
    async fn without_a_limit_nothing_is_kept_back_or_written() {
        let folder = tempfile::tempdir().expect("make a folder");
        let ledger = open(folder.path(), None, "job-1");
        let _kept = ledger.reserve(Usage { input: u64::MAX, output: u64::MAX }).await.expect("no limit");
        ledger.spend(500_000, 0);
        ledger.write_down().await.expect("nothing to do");
        assert_eq!(ledger.spent_here(), Spent(1_000_000));
        assert_eq!(std::fs::read_dir(folder.path()).expect("list").count(), 0);
    }
}
