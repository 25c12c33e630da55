//! Whatever jobs come, fail, pause and end, and whatever trainers leave and come back: no slot is held twice, no gang is in
//! part, no limit is passed, no place is taken for nothing or in turns, what has ended stays so, and every job that fits begins.
//! `PROPTEST_CASES` says how many schedules are tried.

use std::collections::{BTreeMap, BTreeSet};

use crescendo_core::ids::{JobId, NodeId, Tenant};
use crescendo_core::invariants::check_invariants;
use crescendo_core::job::{JobState, Pause};
use crescendo_core::quotas::{Quotas, TenantLimits};
use crescendo_core::state::Job;
use crescendo_core::transitions::{pause_job, resume_job};
use proptest::prelude::*;

use crate::cluster::{Cluster, SEC, Wanted, queues, slots, with_classes};

const QUEUES: [&str; 3] = ["a", "b", ""];
const TENANTS: [&str; 2] = ["research", "products"];
/// Slots of each trainer.
const TRAINERS: [u32; 2] = [4, 4];
const SLOTS: u32 = 8;
/// From here on nobody's place is taken.
const FIXED: i32 = 100;

/// One thing that happens. Numbers are reduced to what there is.
#[derive(Clone, Debug)]
enum Event {
    Submit {
        queue: usize,
        gpus: u32,
        min_gpus: u32,
        priority: i32,
        tenant: usize,
    },
    Cancel(usize),
    Pause(usize),
    Resume(usize),
    RankDies(usize),
    Finish(usize),
    NodeGone(usize),
    NodeBack(usize),
    Drain(usize),
    Undrain(usize),
    /// Gangs run for ten minutes.
    Work,
    /// As long as it takes to give up a trainer.
    Wait,
}

/// What the operator has set.
#[derive(Clone, Debug)]
struct Rules {
    sure: (u32, u32),
    most_of_b: Option<u32>,
    most_of_research: Option<u32>,
    fair: bool,
}

impl Rules {
    fn quotas(&self) -> Quotas {
        let mut quotas = with_classes(queues(&[("a", self.sure.0), ("b", self.sure.1)]));
        quotas.fair_share = self.fair.then_some(3600 * SEC);
        if let Some(most) = self.most_of_b {
            quotas.queues.by_name.get_mut("b").expect("it is there").most = slots(most);
        }
        let tenant = Tenant::parse(TENANTS[0]).expect("valid");
        quotas
            .listed
            .insert(tenant, TenantLimits { max_gpus: self.most_of_research, ..TenantLimits::default() });
        quotas
    }

    /// Slots that the job's tenant, its queue, and what other queues are sure of leave it.
    fn room(&self, job: &Job) -> u32 {
        let spec = &job.record.spec;
        let of_tenant = self.most_of_research.filter(|_| spec.tenant.as_str() == TENANTS[0]).unwrap_or(SLOTS);
        let (of_a, of_b) = self.sure;
        let (sure, others, most) = match spec.queue.as_deref() {
            Some("a") => (of_a, of_b, SLOTS),
            Some("b") => (of_b, of_a, self.most_of_b.unwrap_or(SLOTS)),
            _ => (SLOTS, of_a + of_b, SLOTS),
        };
        let borrows = spec.priority < FIXED || of_a + of_b == 0;
        let of_queue = if borrows { most } else { sure.min(most) };
        of_tenant.min(of_queue).min(SLOTS - others)
    }
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let n = || 0..100usize;
    let priority = prop_oneof![Just(0), Just(50), Just(FIXED)];
    let submit = (0..QUEUES.len(), 1..=SLOTS, 1..=SLOTS, priority, 0..TENANTS.len()).prop_map(
        |(queue, gpus, min_gpus, priority, tenant)| Event::Submit {
            queue,
            gpus,
            min_gpus: min_gpus.min(gpus),
            priority,
            tenant,
        },
    );
    let event = prop_oneof![
        8 => submit,
        1 => n().prop_map(Event::Cancel),
        1 => n().prop_map(Event::Pause),
        2 => n().prop_map(Event::Resume),
        2 => n().prop_map(Event::RankDies),
        3 => n().prop_map(Event::Finish),
        1 => n().prop_map(Event::NodeGone),
        2 => n().prop_map(Event::NodeBack),
        1 => n().prop_map(Event::Drain),
        2 => n().prop_map(Event::Undrain),
        2 => Just(Event::Work),
        1 => Just(Event::Wait),
    ];
    prop::collection::vec(event, 1..30)
}

fn rules() -> impl Strategy<Value = Rules> {
    let most = || prop::option::weighted(0.3, 1..=SLOTS);
    (0..=SLOTS, 0..=SLOTS, most(), most(), prop::bool::ANY).prop_map(
        |(of_a, of_b, most_of_b, most_of_research, fair)| {
            let of_b = of_b.min(SLOTS - of_a).min(most_of_b.unwrap_or(SLOTS));
            Rules { sure: (of_a, of_b), most_of_b, most_of_research, fair }
        },
    )
}

struct Trial {
    cluster: Cluster,
    rules: Rules,
    ended: BTreeMap<JobId, JobState>,
    /// Of `cluster.preemptions`, those that were looked at.
    looked_at: usize,
}

impl Trial {
    fn open(&self) -> Vec<JobId> {
        self.cluster.state.open_jobs().map(|job| job.record.id.clone()).collect()
    }

    fn happens(&mut self, event: &Event) {
        let open = self.open();
        let job = |at: &usize| open.get(at % open.len().max(1)).cloned();
        let node = |at: &usize| NodeId::parse(&format!("t-{}", at % TRAINERS.len())).expect("valid");
        let cluster = &mut self.cluster;
        match event {
            Event::Submit { queue, gpus, min_gpus, priority, tenant } => {
                cluster.submit(&Wanted {
                    tenant: TENANTS[*tenant],
                    queue: QUEUES[*queue],
                    gpus: *gpus,
                    min_gpus: *min_gpus,
                    priority: *priority,
                    minutes: None,
                    topology: "",
                });
            }
            Event::Cancel(at) => job(at).into_iter().for_each(|job| cluster.cancel(&job)),
            Event::Pause(at) => {
                if let Some(job) = job(at) {
                    let pause = Pause { curates: false, reason: "a test".to_owned() };
                    let writes = pause_job(&cluster.state, &job, pause).expect("it is open");
                    cluster.write_all(writes);
                }
            }
            Event::Resume(at) => job(at).into_iter().for_each(|job| self.resume(&job)),
            Event::RankDies(at) => job(at).into_iter().for_each(|job| cluster.fail(&job)),
            Event::Finish(at) => job(at).into_iter().for_each(|job| cluster.finish(&job)),
            Event::NodeGone(at) => cluster.lose(&node(at)),
            Event::NodeBack(at) => cluster.bring_back(&node(at)),
            Event::Drain(at) => cluster.drain(&node(at), true),
            Event::Undrain(at) => cluster.drain(&node(at), false),
            Event::Work => cluster.work(1.0, 600 * SEC),
            Event::Wait => cluster.wait(70),
        }
        self.come_to_rest();
    }

    fn resume(&mut self, job: &JobId) {
        let writes = resume_job(&self.cluster.state, job).expect("it is open");
        self.cluster.write_all(writes);
    }

    /// Decides until there is nothing more to decide, and looks at all that has to be true.
    fn come_to_rest(&mut self) {
        self.cluster.settle();
        let wrong = check_invariants(&self.cluster.state);
        assert!(wrong.is_empty(), "{wrong:?}");
        self.check_gangs();
        self.check_preemptions();
        for job in self.cluster.state.jobs().filter(|job| job.record.state.is_terminal()) {
            let end = self.ended.entry(job.record.id.clone()).or_insert_with(|| job.record.state.clone());
            assert_eq!(*end, job.record.state, "{} had ended", job.record.id);
        }
    }

    /// Gangs are whole, and what tenants and queues hold is theirs to hold.
    fn check_gangs(&self) {
        let (mut of_tenant, mut of_queue) = (BTreeMap::new(), BTreeMap::new());
        for job in self.cluster.state.jobs() {
            let spec = &job.record.spec;
            for attempt in job.stages.iter().filter_map(|stage| stage.active_attempt()) {
                let ranks = u32::try_from(attempt.ranks.len()).expect("few");
                let whole = spec.resources.min_gpus..=spec.resources.gpus;
                assert!(whole.contains(&ranks), "{} has {ranks} of {whole:?} ranks", job.record.id);
                *of_tenant.entry(spec.tenant.as_str()).or_insert(0) += ranks;
                *of_queue.entry(spec.queue.as_deref().unwrap_or_default()).or_insert(0) += ranks;
            }
        }
        let held = |of: &BTreeMap<&str, u32>, name: &str| of.get(name).copied().unwrap_or(0);
        assert!(
            held(&of_tenant, TENANTS[0]) <= self.rules.most_of_research.unwrap_or(SLOTS),
            "{of_tenant:?}"
        );
        assert!(held(&of_queue, "b") <= self.rules.most_of_b.unwrap_or(SLOTS), "{of_queue:?}");
    }

    /// Whoever took a place has it, and nobody lost one twice, or to whom they took one from.
    fn check_preemptions(&mut self) {
        let new = &self.cluster.preemptions
            [std::mem::replace(&mut self.looked_at, self.cluster.preemptions.len())..];
        // Whoever is to leave a trainer that is gone is waited for, and one that a trainer was closed for had counted on it. One that has
        // failed comes back in between, and what tenants have used changes. Who waits for what a queue is sure of may go first when
        // something of it is given back: then it only has to come to rest.
        let backs_off = |job: &Job| {
            let attempts = job.stages.iter().filter_map(|stage| stage.attempt.as_ref());
            attempts.into_iter().any(|attempt| attempt.failures_in_a_row > 1)
        };
        if self.rules.fair
            || self.rules.sure != (0, 0)
            || self.cluster.misses_a_trainer()
            || self.cluster.state.open_jobs().any(backs_off)
        {
            return;
        }
        let victims: BTreeSet<&JobId> = new.iter().map(|(victim, _)| victim).collect();
        assert_eq!(victims.len(), new.len(), "a job lost its place twice: {new:?}");
        for (at, (victim, by)) in new.iter().enumerate() {
            // Unless what left was what kept another from its limit, which goes before it.
            let has_it = self.cluster.ranks(by) > 0 || self.cluster.is_behind(by);
            assert!(has_it, "{victim} left for {by}, which does not run:\n{}", self.cluster.scene());
            assert!(
                new[at..].iter().all(|(victim, _)| victim != by),
                "{by} took a place and lost it: {new:?}"
            );
        }
    }

    /// Whether the job gets what it wants however much others want.
    fn fits(&self, job: &Job) -> bool {
        job.record.spec.resources.min_gpus <= self.rules.room(job)
    }

    /// All works again, jobs end one after the other, and small ones like it keep coming behind it: it begins all the same.
    fn check_that_begins(&mut self, pick: usize) {
        let nodes: Vec<NodeId> = self.cluster.state.nodes().map(|node| node.id.clone()).collect();
        nodes.iter().for_each(|node| self.cluster.bring_back(node));
        // What is larger than its share may wait for ever, with all that is behind it.
        let too_large: Vec<JobId> = self
            .cluster
            .state
            .open_jobs()
            .filter(|job| !self.fits(job))
            .map(|job| job.record.id.clone())
            .collect();
        too_large.iter().for_each(|job| self.cluster.cancel(job));
        let before = self.open();
        before.iter().for_each(|job| self.resume(job));
        self.come_to_rest();
        nodes.iter().for_each(|node| self.cluster.drain(node, false));
        self.come_to_rest();
        let waits = |job: &&Job| self.cluster.ranks(&job.record.id) == 0;
        let waiting: Vec<&Job> = self.cluster.state.open_jobs().filter(waits).collect();
        let Some(job) = waiting.get(pick % waiting.len().max(1)) else { return };
        let (id, spec) = (job.record.id.clone(), job.record.spec.clone());
        // All that there were may end before it, and what began ahead of it; what a trainer is blamed for is forgotten after half an hour.
        for _round in 0..before.len() + SLOTS as usize + 4 {
            self.cluster.submit(&Wanted {
                tenant: spec.tenant.as_str(),
                queue: spec.queue.as_deref().unwrap_or_default(),
                gpus: 1,
                min_gpus: 1,
                priority: spec.priority,
                minutes: None,
                topology: "",
            });
            let others = self.cluster.state.open_jobs().filter(|job| job.record.id != id);
            let running = others.filter(|job| self.cluster.ranks(&job.record.id) > 0);
            let oldest = running.min_by_key(|job| job.record.submitted_at).map(|job| job.record.id.clone());
            oldest.into_iter().for_each(|job| self.cluster.finish(&job));
            self.cluster.work(1.0, 600 * SEC);
            nodes.iter().for_each(|node| self.cluster.drain(node, false));
            self.come_to_rest();
            let ended = self.cluster.state.job(&id).is_some_and(|job| job.record.state.is_terminal());
            if ended || self.cluster.ranks(&id) > 0 {
                return;
            }
        }
        panic!("{id} never began:\n{}", self.cluster.scene());
    }
}

proptest! {
    #[test]
    fn jobs_of_all_queues_are_served_whatever_happens(rules in rules(), events in events(), pick in 0..100usize) {
        let cluster = Cluster::new(&TRAINERS, rules.quotas());
        let mut trial = Trial { cluster, rules, ended: BTreeMap::new(), looked_at: 0 };
        for event in &events {
            trial.happens(event);
        }
        trial.check_that_begins(pick);
    }
}
