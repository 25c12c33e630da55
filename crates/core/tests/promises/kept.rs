//! A decision by what was kept of the one before is the one that is made by who looks at all there is, in every history; and it looks
//! at less. Every decision of [`World`] is made both ways.

use std::collections::BTreeMap;
use std::time::Duration;

use crescendo_core::ids::{StageRef, Tenant};
use crescendo_core::observed::NodeFailure;
use crescendo_core::queues::{Queue, QueueOrder, Queues};
use crescendo_core::quotas::{Quotas, TenantLimits};
use crescendo_core::records::{
    FailureKind, NodeKind, Record, ShardRecord, UnitRecord, UnitResult, UnitState, Write,
};
use crescendo_core::transitions::{MarkOrder, mark_pairs};
use crescendo_core::under_way::UnitProgress;
use proptest::prelude::*;

use crate::acts;
use crate::world::{Act, World, classes, spec_of};

/// What may happen beside the acts that the promises are held to.
#[derive(Clone, Copy, Debug)]
enum Happening {
    Act(Act),
    /// Of one of two tenants. `limited`: for a minute at most; `ready`: with all the pairs of its first stage.
    Submit {
        request: u8,
        shape: (u8, u8, u8, u8),
        limited: bool,
        ready: bool,
    },
    /// Ranks that are on the node, or are to be, end.
    RanksFail {
        node: u8,
        kind: u8,
    },
    /// A curator has not taken up a stage.
    Refuses {
        node: u8,
    },
    /// A curator gives a unit back.
    FailsAt {
        node: u8,
        job: u8,
        kind: FailureKind,
    },
    /// It waits for something outside.
    WaitsOutside {
        node: u8,
        job: u8,
    },
    /// A person marks a pair of its first stage, which those that train on it are told of.
    Marks {
        job: u8,
        index: u8,
    },
    /// Time in which nothing is heard of one node, or of none.
    Passes {
        seconds: u8,
        silent: u8,
    },
}

fn happenings() -> impl Strategy<Value = Happening> {
    let n = any::<u8>;
    let kind = prop_oneof![Just(FailureKind::Source), Just(FailureKind::Passing)];
    prop_oneof![
        30 => acts().prop_map(Happening::Act),
        12 => (n(), (n(), n(), n(), n()), prop::bool::weighted(0.2), prop::bool::weighted(0.8)).prop_map(
            |(request, shape, limited, ready)| Happening::Submit { request, shape, limited, ready }
        ),
        6 => (n(), n()).prop_map(|(node, kind)| Happening::RanksFail { node, kind }),
        1 => n().prop_map(|node| Happening::Refuses { node }),
        1 => (n(), n(), kind).prop_map(|(node, job, kind)| Happening::FailsAt { node, job, kind }),
        1 => (n(), n()).prop_map(|(node, job)| Happening::WaitsOutside { node, job }),
        2 => (n(), 0u8..8).prop_map(|(job, index)| Happening::Marks { job, index }),
        8 => (0u8..50, 0u8..8).prop_map(|(seconds, silent)| Happening::Passes { seconds, silent }),
    ]
}

/// Clusters in which other things limit whom slots are given.
fn quotas() -> impl Strategy<Value = Quotas> {
    let all = || Quotas { classes: classes(), ..Quotas::default() };
    let queue = |queue: Queue| {
        let by_name = BTreeMap::from([("default".to_owned(), queue)]);
        Quotas { queues: Queues { by_name, of_tenants: BTreeMap::new() }, ..all() }
    };
    let slots = |slots: u32| BTreeMap::from([("cpu".to_owned(), slots)]);
    prop_oneof![
        2 => Just(Quotas::default()),
        2 => Just(all()),
        1 => Just(Quotas { others: TenantLimits { max_gpus: Some(3), ..TenantLimits::default() }, ..all() }),
        1 => Just(Quotas {
            others: TenantLimits { max_stored_bytes: Some(400), ..TenantLimits::default() },
            listed: BTreeMap::from([(
                Tenant::parse("t1").expect("valid"),
                TenantLimits { max_curators: Some(1), ..TenantLimits::default() },
            )]),
            ..all()
        }),
        1 => Just(queue(Queue { most: slots(4), order: Some(QueueOrder::Strict), ..Queue::default() })),
        1 => Just(queue(Queue { guaranteed: slots(3), ..Queue::default() })),
        1 => Just(Quotas { fair_share: Some(Duration::from_secs(60)), ..all() }),
    ]
}

fn all_pairs(stage: &StageRef) -> UnitRecord {
    let shard = ShardRecord { path: "p".into(), pairs: 8, size_bytes: 100, sha256: "b".repeat(64) };
    let result = UnitResult { shard, rejected: BTreeMap::new(), scores: Default::default(), exhausted: true };
    UnitRecord { lease_generation: 1, state: UnitState::Done(result), ..UnitRecord::new(stage, 0) }
}

impl World {
    /// `dropped`: what is decided then is not carried out.
    fn happen(&mut self, happening: Happening, dropped: bool) {
        self.now = self.now.plus(Duration::from_millis(10));
        match happening {
            Happening::Act(act) => self.perform(act),
            Happening::Submit { request, shape: (gpus, min_gpus, stages, priority), limited, ready } => {
                let before = self.state.open_count();
                let mut spec = spec_of(gpus, min_gpus, stages, priority);
                spec.tenant = format!("t{}", request % 2);
                spec.time_limit_minutes = limited.then_some(1);
                let job = self.submit_as(&format!("k{request}"), spec);
                if ready && self.state.open_count() > before {
                    let stage = &self.state.job(&job).expect("it was submitted").stages[0];
                    let unit = all_pairs(&stage.id);
                    self.apply(vec![Write::Put(Record::Unit(unit))]);
                }
            }
            Happening::RanksFail { node, kind } => {
                let kinds = [
                    NodeFailure::Retryable,
                    NodeFailure::RankDied,
                    NodeFailure::PeerLost,
                    NodeFailure::Permanent,
                ];
                self.perform(Act::Obey { node });
                self.ranks_fail(node, kinds[usize::from(kind) % kinds.len()]);
                self.perform(Act::Tell { node });
            }
            Happening::Refuses { node } => {
                let node = self.id_of(NodeKind::Curator, node);
                let stage = self.seen.nodes.get(&node).and_then(|view| view.curating.first().cloned());
                let (seen, now) = (&mut self.seen, self.now);
                stage.into_iter().for_each(|stage| seen.refuses(&node, &stage, "no room", now));
            }
            Happening::FailsAt { node, job, kind } => {
                let (node, now) = (self.id_of(NodeKind::Curator, node), self.now);
                if let Some(stage) = self.some_stage(job) {
                    self.seen.failed_at(&stage, &node, kind, "no such folder", now);
                }
            }
            Happening::WaitsOutside { node, job } => {
                let node = self.id_of(NodeKind::Curator, node);
                let progress = UnitProgress {
                    waits_for: Some("no answer".to_owned()),
                    at: self.now,
                    ..UnitProgress::default()
                };
                if let Some(stage) = self.some_stage(job) {
                    self.seen.under_way.put(&stage, &node, progress);
                }
            }
            Happening::Marks { job, index } => {
                if let Some(stage) = self.some_stage(job) {
                    let (indices, reason, by) = (vec![u64::from(index)], String::new(), "ada".to_owned());
                    let order = MarkOrder { stage, indices, bad: true, reason, by };
                    // A pair that is not there, or is marked already, is no matter here.
                    self.apply(mark_pairs(&self.state, order, self.now).unwrap_or_default());
                }
            }
            Happening::Passes { seconds, silent } => {
                self.wait_without(Duration::from_secs(seconds.into()), silent);
            }
        }
        let plan = self.decide();
        if !dropped {
            self.carry_out(plan);
        }
    }

    fn some_stage(&self, job: u8) -> Option<StageRef> {
        let jobs: Vec<_> = self.state.open_jobs().collect();
        let job = jobs.get(usize::from(job) % jobs.len().max(1))?;
        job.stages.first().map(|stage| stage.id.clone())
    }

    /// Until nothing is to be done any more.
    fn come_to_rest(&mut self) {
        loop {
            (0..5).for_each(|node| self.perform(Act::Obey { node }));
            (0..5).for_each(|node| self.perform(Act::Tell { node }));
            let plan = self.decide();
            if plan.writes.is_empty() && plan.sends.is_empty() && self.decide().waits == plan.waits {
                return;
            }
            self.carry_out(plan);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn what_is_kept_decides_as_who_looks_at_all(
        quotas in quotas(),
        happenings in prop::collection::vec((happenings(), prop::bool::weighted(0.2)), 1..150),
    ) {
        let mut world = World::of(quotas);
        (0..5).for_each(|node| world.perform(Act::StartNode { node }));
        for (happening, dropped) in happenings {
            world.happen(happening, dropped);
        }
    }
}

/// The test above cannot pass by looking at everything each time.
#[test]
fn only_what_has_changed_is_looked_at() {
    let mut world = World::of(Quotas::default());
    (0..5).for_each(|node| world.perform(Act::StartNode { node }));
    for request in 0..40 {
        world.submit_as(&format!("k{request}"), spec_of(1, 1, 0, 0));
    }
    // All have their pairs; three of them have slots.
    while world.state.open_jobs().any(|job| job.facts().lacks.is_some()) {
        for job in 0..40 {
            world.perform(Act::Lease { job, node: 3 });
            world.perform(Act::Lease { job, node: 4 });
        }
        (0..80).for_each(|_| world.perform(Act::CommitUnit { pick: 0, pairs: 4 }));
        world.come_to_rest();
    }
    world.come_to_rest();
    assert_eq!(world.state.open_jobs().filter(|job| job.facts().is_placed).count(), 3);
    world.decide();
    assert_eq!(world.decider.jobs_looked_at(), 0, "nothing has changed");

    world.submit_as("another", spec_of(1, 1, 0, 0));
    let plan = world.decide();
    assert_eq!(world.decider.jobs_looked_at(), 1, "it alone");
    world.carry_out(plan);
    world.come_to_rest();

    let waits = world.waits.len();
    let last = world.state.open_jobs().last().expect("many wait").record.id.clone();
    world.perform(Act::Cancel { job: world.number_of(&last) });
    let plan = world.decide();
    assert_eq!(world.decider.jobs_looked_at(), 0, "one that waits is gone, and the others wait for the same");
    assert_eq!(plan.waits.len(), waits - 1);
    world.carry_out(plan);

    let running = world.state.open_jobs().find(|job| job.facts().is_placed).expect("three run");
    let running = running.record.id.clone();
    world.perform(Act::Cancel { job: world.number_of(&running) });
    let plan = world.decide();
    world.carry_out(plan);
    (0..3).for_each(|node| world.perform(Act::Obey { node }));
    (0..3).for_each(|node| world.perform(Act::Tell { node }));
    let plan = world.decide();
    assert_eq!(world.decider.jobs_looked_at(), 1, "the one that gets its slots");
    assert!(!plan.writes.is_empty());
}
