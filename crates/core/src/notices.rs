//! Telling other systems that a job has ended: to which webhooks, when a delivery is tried again, and when it is given up.
//!
//! A tenant's webhooks stand in the tenants file. The end of a job and what is to be told of it are written together. What is not
//! durable is how often a delivery was tried: whoever leads next tries at once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::ids::{JobId, Timestamp};
use crate::records::{Record, RecordKey, Write};
use crate::state::ClusterState;
pub use crate::webhook::{
    DeliveryKey, EndNotice, JobEnd, MAX_WEBHOOKS, NoticeRecord, Webhook, WebhookId, Webhooks,
};

/// Ends of one job that are told of at a time: a failed job that is tried again ends once more. Of more the oldest is dropped.
pub const MAX_ENDS: usize = 8;
/// Deliveries under way at most.
pub const MAX_UNDER_WAY: usize = 8;
/// Of these to the webhooks of one tenant.
const MAX_OF_TENANT: usize = 2;
/// Of these to webhooks whose last delivery failed: the others have the rest for themselves.
const MAX_TO_FAILING: usize = 4;
const FIRST_RETRY: Duration = Duration::from_secs(5);
const LAST_RETRY: Duration = Duration::from_secs(3600);
/// A delivery that fails this long after the job's end is not tried again.
pub const GIVEN_UP_AFTER: Duration = Duration::from_secs(24 * 3600);
/// Longest reason that is remembered of a failure, in characters.
const MAX_WHY: usize = 300;

/// What is to be told of an end.
#[derive(Clone, Debug, PartialEq)]
pub struct Settled {
    pub write: Write,
    /// Deliveries of older ends that this one leaves no room for.
    pub dropped: usize,
}

/// What is to be told once `write` is applied to the state, if it ends a job of a tenant with webhooks.
pub fn settle(state: &ClusterState, write: &Write, webhooks: &Webhooks) -> Option<Settled> {
    let Write::Put(Record::Job(record)) = write else { return None };
    let (end, finished_at) = (JobEnd::of(&record.state)?, record.finished_at?);
    let ends_now = state.job(&record.id).is_some_and(|before| !before.record.state.is_terminal());
    let told = webhooks.of(&record.spec.tenant).iter().filter(|webhook| webhook.events.contains(&end));
    let waiting: BTreeSet<WebhookId> = told.map(|webhook| webhook.id.clone()).collect();
    if !ends_now || waiting.is_empty() {
        return None;
    }
    let mut ends = state.notice(&record.id).map(|notice| notice.ends.clone()).unwrap_or_default();
    ends.push(EndNotice { state: record.state.clone(), started_at: record.started_at, finished_at, waiting });
    let too_many = ends.len().saturating_sub(MAX_ENDS);
    let dropped = ends.drain(..too_many).map(|end| end.waiting.len()).sum();
    let write = Write::Put(Record::Notice(NoticeRecord { job: record.id.clone(), ends }));
    Some(Settled { write, dropped })
}

/// What is left to be told after a delivery that was made or given up; none if it is known already.
pub fn done(state: &ClusterState, delivery: &DeliveryKey) -> Option<Write> {
    let mut record = state.notice(&delivery.job)?.clone();
    let end = record.ends.iter_mut().find(|end| end.finished_at == delivery.finished_at)?;
    if !end.waiting.remove(&delivery.webhook) {
        return None;
    }
    record.ends.retain(|end| !end.waiting.is_empty());
    Some(if record.ends.is_empty() {
        Write::Delete(RecordKey::Notice(record.job))
    } else {
        Write::Put(Record::Notice(record))
    })
}

/// Deliveries that wait.
pub fn waiting_count(state: &ClusterState) -> usize {
    state.notices().flat_map(|notice| &notice.ends).map(|end| end.waiting.len()).sum()
}

/// When the oldest end was that some webhook has not been told.
pub fn oldest_waiting(state: &ClusterState) -> Option<Timestamp> {
    let ends = state.notices().flat_map(|notice| &notice.ends);
    ends.filter(|end| !end.waiting.is_empty()).map(|end| end.finished_at).min()
}

/// Wait after this many failures in a row.
pub fn backoff(failures: u32) -> Duration {
    let factor = 1u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
    FIRST_RETRY.saturating_mul(factor).min(LAST_RETRY)
}

/// How deliveries went that have failed. Not durable.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tries {
    failed: BTreeMap<DeliveryKey, FailedTry>,
    /// Webhooks whose last delivery failed, by tenant.
    failing: BTreeSet<(String, WebhookId)>,
    turns: Turns,
}

/// Whose delivery is next: tenants go round, those that begin to wait last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Turns {
    /// That of the newest delivery.
    newest: u64,
    /// The last of each tenant for which something waits.
    last: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct FailedTry {
    failures: u32,
    /// It is tried again then.
    until: Timestamp,
    why: String,
}

/// What comes after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterFailure {
    /// In this time.
    Again(Duration),
    GivenUp,
}

/// What is to be done now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Due {
    pub deliver: Vec<DeliveryKey>,
    /// To webhooks that are in the file no more.
    pub withdrawn: Vec<DeliveryKey>,
}

impl Tries {
    /// Which try of the delivery is next, from 1.
    pub fn next_try(&self, delivery: &DeliveryKey) -> u32 {
        self.failed.get(delivery).map_or(1, |tried| tried.failures.saturating_add(1))
    }

    /// A delivery was made. Returns whether the webhook works again after it did not.
    pub fn succeeded(&mut self, tenant: &str, delivery: &DeliveryKey) -> bool {
        self.failed.remove(delivery);
        self.failing.remove(&(tenant.to_owned(), delivery.webhook.clone()))
    }

    /// A try has failed `since_end` after the job's end. Returns what follows, and whether the webhook worked before.
    pub fn failed(
        &mut self,
        tenant: &str,
        delivery: &DeliveryKey,
        why: &str,
        since_end: Duration,
        now: Timestamp,
    ) -> (AfterFailure, bool) {
        let is_new = self.failing.insert((tenant.to_owned(), delivery.webhook.clone()));
        if since_end >= GIVEN_UP_AFTER {
            self.failed.remove(delivery);
            return (AfterFailure::GivenUp, is_new);
        }
        let failures = self.failed.get(delivery).map_or(0, |tried| tried.failures).saturating_add(1);
        let wait = backoff(failures);
        let why = why.chars().take(MAX_WHY).collect();
        self.failed.insert(delivery.clone(), FailedTry { failures, until: now.plus(wait), why });
        (AfterFailure::Again(wait), is_new)
    }

    /// The delivery is not tried any more.
    pub fn forget(&mut self, delivery: &DeliveryKey) {
        self.failed.remove(delivery);
    }

    /// What can be done now beside the deliveries that are `under_way`. Forgets what waits no more.
    pub fn due(
        &mut self,
        state: &ClusterState,
        webhooks: &Webhooks,
        under_way: &BTreeSet<DeliveryKey>,
        now: Timestamp,
    ) -> Due {
        self.failed.retain(|delivery, _| waits(state, delivery));
        self.failing.retain(|(tenant, webhook)| webhooks.find(tenant, webhook).is_some());
        let mut due = Due::default();
        let mut ready: Vec<Ready> = Vec::new();
        let mut tenants: BTreeSet<&str> = BTreeSet::new();
        let mut load = Load::default();
        for delivery in under_way {
            if let Some(tenant) = state.tenant_of(&delivery.job) {
                load.add(tenant, self.is_failing(tenant, &delivery.webhook));
            } else {
                load.all += 1;
            }
        }
        for (delivery, tenant) in waiting(state) {
            tenants.insert(tenant);
            if under_way.contains(&delivery) {
                continue;
            }
            if webhooks.find(tenant, &delivery.webhook).is_none() {
                due.withdrawn.push(delivery);
            } else if self.failed.get(&delivery).is_none_or(|tried| now >= tried.until) {
                let failing = self.is_failing(tenant, &delivery.webhook);
                ready.push(Ready { tries: self.next_try(&delivery), delivery, tenant, failing });
            }
        }
        self.turns.keep(&tenants);
        due.deliver = choose(ready, load, &mut self.turns);
        due
    }

    fn is_failing(&self, tenant: &str, webhook: &WebhookId) -> bool {
        self.failing.contains(&(tenant.to_owned(), webhook.clone()))
    }

    /// What is not told yet of a job that has ended, one line; none if nothing waits.
    pub fn finding(
        &self,
        state: &ClusterState,
        webhooks: &Webhooks,
        job: &JobId,
        now: Timestamp,
    ) -> Option<String> {
        let tenant = state.tenant_of(job)?;
        let of_job = |(delivery, _): &(DeliveryKey, &str)| delivery.job == *job;
        let waiting: Vec<DeliveryKey> = waiting(state).filter(of_job).map(|(delivery, _)| delivery).collect();
        let shown = |delivery: &DeliveryKey| {
            let webhook = webhooks.find(tenant, &delivery.webhook);
            webhook
                .map_or("one that is in the tenants file no more", |webhook| webhook.shown.as_str())
                .to_owned()
        };
        let failed = waiting.iter().find_map(|delivery| Some((delivery, self.failed.get(delivery)?)));
        let count = waiting.len();
        let deliveries =
            if count == 1 { "1 webhook has".to_owned() } else { format!("{count} webhooks have") };
        match failed {
            _ if count == 0 => None,
            None => Some(format!("{deliveries} not been told yet")),
            Some((delivery, tried)) => Some(format!(
                "{deliveries} not been told: {} failed {} time(s), last: {}; tried again in {} s",
                shown(delivery),
                tried.failures,
                tried.why,
                tried.until.since(now).as_secs()
            )),
        }
    }
}

impl Turns {
    fn keep(&mut self, tenants: &BTreeSet<&str>) {
        self.last.retain(|tenant, _| tenants.contains(tenant.as_str()));
        for tenant in tenants {
            self.last.entry((*tenant).to_owned()).or_insert(self.newest);
        }
    }

    fn last(&self, tenant: &str) -> u64 {
        self.last.get(tenant).copied().unwrap_or(self.newest)
    }

    fn served(&mut self, tenant: &str) {
        self.newest = self.newest.saturating_add(1);
        self.last.insert(tenant.to_owned(), self.newest);
    }
}

/// A delivery that can be made now.
struct Ready<'a> {
    tries: u32,
    delivery: DeliveryKey,
    tenant: &'a str,
    failing: bool,
}

/// Which of the deliveries are made, as far as there is room. However many wait for slow receivers of some tenants, the next is one of
/// the tenant with the least under way. Of a tenant those go first that were tried least, then the oldest.
fn choose(mut ready: Vec<Ready>, mut load: Load, turns: &mut Turns) -> Vec<DeliveryKey> {
    ready.sort_by(|left, right| {
        let key = |ready: &Ready| (ready.tries, ready.delivery.finished_at);
        key(left).cmp(&key(right)).then_with(|| left.delivery.cmp(&right.delivery))
    });
    // More of a tenant than there is room for need not be compared again and again.
    let mut kept: BTreeMap<(&str, bool), usize> = BTreeMap::new();
    ready.retain(|ready| {
        let count = kept.entry((ready.tenant, ready.failing)).or_insert(0);
        *count += 1;
        *count <= MAX_OF_TENANT
    });
    let mut chosen = Vec::new();
    loop {
        let fits = |(_, ready): &(usize, &Ready)| load.has_room(ready.tenant, ready.failing);
        let rank = |(_, ready): &(usize, &Ready)| (load.of_tenant(ready.tenant), turns.last(ready.tenant));
        // Of several that are equal it is the first.
        let Some((place, _)) = ready.iter().enumerate().filter(fits).min_by_key(rank) else { return chosen };
        let Ready { delivery, tenant, failing, .. } = ready.remove(place);
        load.add(tenant, failing);
        turns.served(tenant);
        chosen.push(delivery);
    }
}

/// Deliveries that are under way.
#[derive(Default)]
struct Load {
    all: usize,
    failing: usize,
    by_tenant: BTreeMap<String, usize>,
}

impl Load {
    fn add(&mut self, tenant: &str, failing: bool) {
        self.all += 1;
        self.failing += usize::from(failing);
        *self.by_tenant.entry(tenant.to_owned()).or_insert(0) += 1;
    }

    fn of_tenant(&self, tenant: &str) -> usize {
        self.by_tenant.get(tenant).copied().unwrap_or(0)
    }

    fn has_room(&self, tenant: &str, failing: bool) -> bool {
        self.all < MAX_UNDER_WAY
            && self.of_tenant(tenant) < MAX_OF_TENANT
            && (!failing || self.failing < MAX_TO_FAILING)
    }
}

/// Every delivery that waits, with its tenant.
fn waiting(state: &ClusterState) -> impl Iterator<Item = (DeliveryKey, &str)> {
    state.notices().flat_map(move |notice| {
        let tenant = state.tenant_of(&notice.job).unwrap_or_default();
        notice.ends.iter().flat_map(move |end| {
            end.waiting.iter().map(move |webhook| {
                let (job, finished_at) = (notice.job.clone(), end.finished_at);
                (DeliveryKey { job, finished_at, webhook: webhook.clone() }, tenant)
            })
        })
    })
}

fn waits(state: &ClusterState, delivery: &DeliveryKey) -> bool {
    let ends = state.notice(&delivery.job).into_iter().flat_map(|notice| &notice.ends);
    let mut ends = ends.filter(|end| end.finished_at == delivery.finished_at);
    ends.any(|end| end.waiting.contains(&delivery.webhook))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::ids::{RequestId, Tenant};
    use crate::job::JobState;
    use crate::records::JobRecord;
    use crate::secret::Secret;

    const NOW: Timestamp = Timestamp(1_000_000);

    fn job(name: &str, tenant: &str, state: JobState, finished_at: Option<u64>) -> JobRecord {
        let yaml = format!(
            "apiVersion: crescendo/v1\nkind: TrainingJob\nmetadata: {{name: uno, tenant: {tenant}}}\nspec:\n  model: {{preset: nano, weights: w}}\n  stages: [{{data: {{source: compose, subjects: lib, pairs: 8}}}}]\n"
        );
        JobRecord {
            id: JobId::parse(name).expect("valid"),
            request: RequestId::parse(name).expect("valid"),
            spec: Arc::new(crate::spec::parse(yaml.as_bytes()).expect("the spec is right")),
            spec_json: Arc::from(&b"{}"[..]),
            state,
            submitted_at: Timestamp(1),
            trace: None,
            started_at: None,
            finished_at: finished_at.map(Timestamp),
        }
    }

    fn webhook(id: &str, events: &[JobEnd]) -> Webhook {
        Webhook {
            id: WebhookId(id.into()),
            url: Secret::new("https://h/x"),
            shown: "https://h".into(),
            events: events.iter().copied().collect(),
            secret: None,
        }
    }

    /// `a` has one webhook for failures alone and one for all ends; `b`, `c` and `d` have one each; others have none.
    fn webhooks() -> Webhooks {
        let all = &JobEnd::ALL;
        let of = |tenant: &str, webhooks: Vec<Webhook>| (Tenant::parse(tenant).expect("valid"), webhooks);
        let mut listed = BTreeMap::from([of("a", vec![webhook("1", &[JobEnd::Failed]), webhook("2", all)])]);
        listed.extend(["b", "c", "d", "e"].map(|tenant| of(tenant, vec![webhook("3", all)])));
        Webhooks { listed, others: Vec::new() }
    }

    fn cancelled() -> JobState {
        JobState::Cancelled { reason: "enough".into() }
    }

    /// Ends the job as the engine does.
    fn end(state: &mut ClusterState, record: JobRecord) -> Option<Settled> {
        let write = Write::Put(Record::Job(record));
        let settled = settle(state, &write, &webhooks());
        for write in settled.clone().map(|settled| settled.write).into_iter().chain([write]) {
            state.apply(write).expect("its job is there");
        }
        settled
    }

    fn begin(state: &mut ClusterState, name: &str, tenant: &str) {
        let record = job(name, tenant, JobState::Queued, None);
        state.apply(Write::Put(Record::Job(record))).expect("it needs nothing");
    }

    fn ended(jobs: &[(&str, &str)]) -> ClusterState {
        let mut state = ClusterState::default();
        for (place, (name, tenant)) in jobs.iter().enumerate() {
            begin(&mut state, name, tenant);
            end(&mut state, job(name, tenant, cancelled(), Some(10 + place as u64)));
        }
        state
    }

    fn deliveries(
        tries: &mut Tries,
        state: &ClusterState,
        under_way: &BTreeSet<DeliveryKey>,
        now: Timestamp,
    ) -> Vec<String> {
        let due = tries.due(state, &webhooks(), under_way, now);
        assert_eq!(due.withdrawn, []);
        due.deliver.iter().map(|key| format!("{} {}", key.job, key.webhook.0)).collect()
    }

    fn key(job: &str, finished_at: u64, webhook: &str) -> DeliveryKey {
        let job = JobId::parse(job).expect("valid");
        DeliveryKey { job, finished_at: Timestamp(finished_at), webhook: WebhookId(webhook.into()) }
    }

    #[test]
    fn an_end_is_told_to_those_webhooks_that_want_it_and_once() {
        let mut state = ClusterState::default();
        for (name, tenant) in [("j", "a"), ("k", "a"), ("l", "nobody")] {
            begin(&mut state, name, tenant);
        }
        let told = |settled: Option<Settled>| match settled {
            Some(Settled { write: Write::Put(Record::Notice(notice)), dropped: 0 }) => notice.ends,
            other => panic!("{other:?}"),
        };
        let running = job("j", "a", JobState::Running { stage: 0 }, None);
        assert_eq!(end(&mut state, running), None, "it goes on");
        let failed = JobState::Failed { reason: "no pairs".into() };
        let first = told(end(&mut state, job("j", "a", failed.clone(), Some(10))));
        assert_eq!(first.len(), 1);
        assert_eq!((first[0].waiting.len(), &first[0].state), (2, &failed));
        assert_eq!(end(&mut state, job("j", "a", failed, Some(10))), None, "it had ended");
        let second = told(end(&mut state, job("k", "a", cancelled(), Some(11))));
        assert_eq!(second[0].waiting, BTreeSet::from([WebhookId("2".into())]));
        assert_eq!(end(&mut state, job("l", "nobody", cancelled(), Some(12))), None, "nobody is to be told");
        // Tried again by a person, it ends once more: both ends are told.
        begin(&mut state, "j", "a");
        let both = told(end(&mut state, job("j", "a", JobState::Succeeded, Some(13))));
        assert_eq!(both.iter().map(|end| end.state.name()).collect::<Vec<_>>(), ["failed", "succeeded"]);
        assert_eq!(waiting_count(&state), 4);
        assert_eq!(oldest_waiting(&state), both.first().map(|end| end.finished_at));
    }

    #[test]
    fn of_more_ends_than_are_kept_the_oldest_is_dropped_and_counted() {
        let mut state = ClusterState::default();
        let dropped = (0..10u64).map(|round| {
            begin(&mut state, "j", "a");
            // The first is waited for by two, each other by one.
            let how = if round == 0 { JobState::Failed { reason: "r".into() } } else { cancelled() };
            end(&mut state, job("j", "a", how, Some(20 + round))).expect("it is told").dropped
        });
        assert_eq!(dropped.collect::<Vec<_>>(), [0, 0, 0, 0, 0, 0, 0, 0, 2, 1]);
        let ends: Vec<u64> =
            state.notices().flat_map(|notice| &notice.ends).map(|end| end.finished_at.0).collect();
        assert_eq!(ends, (22..30).collect::<Vec<_>>());
    }

    #[test]
    fn a_record_goes_when_all_are_told_and_with_its_job() {
        let mut state = ClusterState::default();
        begin(&mut state, "j", "a");
        end(&mut state, job("j", "a", JobState::Failed { reason: "r".into() }, Some(10)));
        let first = done(&state, &key("j", 10, "1")).expect("it waited");
        state.apply(first).expect("its job is there");
        assert_eq!(done(&state, &key("j", 10, "1")), None, "noted already");
        assert_eq!(done(&state, &key("j", 11, "2")), None, "another end");
        let last = done(&state, &key("j", 10, "2")).expect("it waited");
        assert_eq!(last, Write::Delete(RecordKey::Notice(JobId::parse("j").expect("valid"))));
        state.apply(Write::Delete(RecordKey::Job(JobId::parse("j").expect("valid")))).expect("it goes");
        assert_eq!((state.notices().count(), waiting_count(&state)), (0, 0));
    }

    #[test]
    fn waits_double_up_to_an_hour() {
        let waits: Vec<u64> = [1, 2, 3, 10, 11, 12, 40, u32::MAX].map(|n| backoff(n).as_secs()).to_vec();
        assert_eq!(waits, [5, 10, 20, 2560, 3600, 3600, 3600, 3600]);
    }

    #[test]
    fn a_failed_delivery_is_due_after_its_wait_and_given_up_after_a_day() {
        let state = ended(&[("j", "b")]);
        let (mut tries, none) = (Tries::default(), BTreeSet::new());
        let delivery = key("j", 10, "3");
        assert_eq!(deliveries(&mut tries, &state, &none, NOW), ["j 3"]);
        let failed =
            |tries: &mut Tries, since_end| tries.failed("b", &delivery, "it answers 500", since_end, NOW);
        assert_eq!(failed(&mut tries, Duration::ZERO), (AfterFailure::Again(Duration::from_secs(5)), true));
        assert_eq!(tries.next_try(&delivery), 2);
        assert!(deliveries(&mut tries, &state, &none, NOW.plus(Duration::from_millis(4999))).is_empty());
        assert_eq!(deliveries(&mut tries, &state, &none, NOW.plus(Duration::from_secs(5))), ["j 3"]);
        let job = JobId::parse("j").expect("valid");
        let found = tries.finding(&state, &webhooks(), &job, NOW).expect("it waits");
        assert_eq!(
            found,
            "1 webhook has not been told: https://h failed 1 time(s), last: it answers 500; tried again in 5 s"
        );
        let day = GIVEN_UP_AFTER;
        assert_eq!(
            failed(&mut tries, day - Duration::from_millis(1)).0,
            AfterFailure::Again(Duration::from_secs(10))
        );
        assert_eq!(failed(&mut tries, day), (AfterFailure::GivenUp, false));
        // However long nobody led: it is tried once at least.
        assert_eq!(deliveries(&mut Tries::default(), &state, &none, NOW.plus(3 * day)), ["j 3"]);
        assert!(tries.succeeded("b", &delivery) && !tries.succeeded("b", &delivery));
    }

    #[test]
    fn no_tenant_and_no_failing_webhook_has_all_deliveries() {
        let names: Vec<String> = (0..5).map(|place| format!("b-{place}")).collect();
        let mut jobs: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "b")).collect();
        jobs.extend([("c-0", "c"), ("d-0", "d"), ("e-0", "e")]);
        let state = ended(&jobs);
        let (mut tries, none) = (Tries::default(), BTreeSet::new());
        assert_eq!(deliveries(&mut tries, &state, &none, NOW), ["b-0 3", "c-0 3", "d-0 3", "e-0 3", "b-1 3"]);
        let under_way = BTreeSet::from([key("b-0", 10, "3"), key("c-0", 15, "3")]);
        assert_eq!(deliveries(&mut tries, &state, &under_way, NOW), ["d-0 3", "e-0 3", "b-1 3"]);
        // Of webhooks that fail so many at a time, whatever their tenants.
        for (tenant, failed) in
            [("b", key("b-4", 14, "3")), ("c", key("c-0", 15, "3")), ("d", key("d-0", 16, "3"))]
        {
            tries.failed(tenant, &failed, "no answer", Duration::ZERO, NOW);
        }
        let later = NOW.plus(Duration::from_secs(5));
        // Of `b` those that were tried least go first.
        assert_eq!(
            deliveries(&mut tries, &state, &none, later),
            ["c-0 3", "d-0 3", "e-0 3", "b-0 3", "b-1 3"]
        );
        tries.failed("e", &key("e-0", 17, "3"), "no answer", Duration::ZERO, NOW);
        assert_eq!(deliveries(&mut tries, &state, &none, later), ["c-0 3", "d-0 3", "e-0 3", "b-0 3"]);
    }

    #[test]
    fn a_backlog_to_slow_receivers_holds_up_no_other_tenant() {
        let slow = ["a", "b", "c", "d"];
        let names: Vec<(String, &str)> = slow
            .iter()
            .flat_map(|tenant| (0..10).map(move |place| (format!("{tenant}-{place}"), *tenant)))
            .collect();
        let mut jobs: Vec<(&str, &str)> =
            names.iter().map(|(name, tenant)| (name.as_str(), *tenant)).collect();
        let mut tries = Tries::default();
        let state = ended(&jobs);
        let mut under_way: BTreeSet<DeliveryKey> =
            tries.due(&state, &webhooks(), &BTreeSet::new(), NOW).deliver.into_iter().collect();
        assert_eq!(under_way.len(), MAX_UNDER_WAY);
        // The newest of all, and its is the first place that is free.
        jobs.push(("e-0", "e"));
        let mut state = ended(&jobs);
        assert_eq!(deliveries(&mut tries, &state, &under_way, NOW), [""; 0]);
        let told = under_way.pop_first().expect("some are under way");
        tries.succeeded("a", &told);
        state.apply(done(&state, &told).expect("it waited")).expect("its job is there");
        assert_eq!(deliveries(&mut tries, &state, &under_way, NOW), ["e-0 3"]);
    }

    #[test]
    fn tenants_of_which_more_wait_than_can_go_take_turns() {
        let names: Vec<(String, String)> = (0..3)
            .flat_map(|round| {
                (0..20).map(move |tenant| (format!("t-{tenant:02}-{round}"), format!("t-{tenant:02}")))
            })
            .collect();
        let webhooks = Webhooks { others: vec![webhook("3", &JobEnd::ALL)], ..Webhooks::default() };
        let mut state = ClusterState::default();
        for (place, (name, tenant)) in names.iter().enumerate() {
            begin(&mut state, name, tenant);
            let write = Write::Put(Record::Job(job(name, tenant, cancelled(), Some(10 + place as u64))));
            let settled = settle(&state, &write, &webhooks).expect("it is told");
            state.apply(settled.write).and_then(|()| state.apply(write)).expect("its job is there");
        }
        let (mut tries, none) = (Tries::default(), BTreeSet::new());
        let mut told: BTreeMap<String, usize> = BTreeMap::new();
        // Each round ends what the one before began: within five rounds of eight all twenty have had two turns.
        for _ in 0..5 {
            for delivery in tries.due(&state, &webhooks, &none, NOW).deliver {
                *told.entry(state.tenant_of(&delivery.job).expect("known").to_owned()).or_insert(0) += 1;
                state.apply(done(&state, &delivery).expect("it waited")).expect("its job is there");
            }
        }
        assert!(told.len() == 20 && told.values().all(|count| *count == 2), "{told:?}");
    }

    #[test]
    fn what_left_the_file_is_withdrawn() {
        let state = ended(&[("j", "b")]);
        let due = Tries::default().due(&state, &Webhooks::default(), &BTreeSet::new(), NOW);
        assert_eq!((due.deliver, due.withdrawn), (vec![], vec![key("j", 10, "3")]));
    }

    #[test]
    fn a_record_without_its_job_is_an_orphan() {
        let mut state = ClusterState::default();
        let record = NoticeRecord { job: JobId::parse("j").expect("valid"), ends: Vec::new() };
        assert!(state.apply(Write::Put(Record::Notice(record))).is_err());
    }
}
