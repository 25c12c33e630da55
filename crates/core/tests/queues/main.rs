//! Queues: what one is sure of it gets, what it borrows it gives back, and nobody takes the same slots in turns.

mod cluster;
mod schedules;

use std::collections::{BTreeMap, BTreeSet};

use crescendo_core::decide::{Command, Limits};
use crescendo_core::ids::{JobId, Tenant};
use crescendo_core::job::{JobState, Pause};
use crescendo_core::queues::Packing;
use crescendo_core::quotas::{QueueOrder, Quotas, TenantLimits};
use crescendo_core::spec;
use crescendo_core::transitions::{QueueLimits, pause_job, resume_job, retry_job};

use cluster::{Cluster, SEC, Wanted, queues, slots, wanted, why, with_classes};

#[test]
fn a_queue_takes_back_what_it_is_sure_of_and_no_more() {
    let mut cluster = Cluster::new(&[8], queues(&[("a", 4), ("b", 4)]));
    let borrowers: Vec<JobId> = (0..4).map(|_| cluster.submit(&wanted("a", 2))).collect();
    cluster.settle();
    assert_eq!(cluster.held("a"), 8, "what nobody is sure of now is borrowed");
    let own = cluster.submit(&wanted("b", 2));
    cluster.settle();
    assert_eq!((cluster.ranks(&own), cluster.held("a")), (2, 6));
    assert_eq!(cluster.preemptions.len(), 1, "one gang is enough");
    let (victim, by) = cluster.preemptions[0].clone();
    assert!(by == own && borrowers.contains(&victim));
    // More than b is sure of is not taken back.
    let more = cluster.submit(&wanted("b", 4));
    let plan = cluster.settle();
    assert_eq!((cluster.ranks(&more), cluster.held("a"), cluster.preemptions.len()), (0, 6, 1));
    assert!(why(&plan, &more).starts_with("waits"), "{}", why(&plan, &more));
}

#[test]
fn a_gang_that_borrowed_goes_on_with_what_its_queue_is_sure_of() {
    let mut cluster = Cluster::new(&[8], queues(&[("a", 4), ("b", 4)]));
    let elastic = cluster.submit(&Wanted { min_gpus: 1, ..wanted("a", 8) });
    cluster.settle();
    assert_eq!(cluster.ranks(&elastic), 8);
    let own = cluster.submit(&wanted("b", 4));
    cluster.settle();
    assert_eq!((cluster.ranks(&own), cluster.ranks(&elastic)), (4, 4));
    assert_eq!(cluster.preemptions.len(), 1);
}

#[test]
fn a_gang_grows_into_slots_that_nobody_waits_for() {
    let mut cluster = Cluster::new(&[8], Quotas::default());
    let other = cluster.submit(&wanted("", 5));
    let elastic = cluster.submit(&Wanted { min_gpus: 2, ..wanted("", 7) });
    cluster.settle();
    assert_eq!([&other, &elastic].map(|job| cluster.ranks(job)), [5, 3], "any number from 2 to 7");
    cluster.cancel(&other);
    // 19 of its steps are left, of 840 samples each.
    cluster.work(20.0, 100 * SEC);
    cluster.settle();
    assert_eq!(cluster.ranks(&elastic), 3, "it has just begun");
    cluster.work(20.0, 300 * SEC);
    let plan = cluster.decide();
    assert_eq!(why(&plan, &elastic), "goes on with 7 ranks instead of 3, once those have saved and left");
    let told = |send: &crescendo_core::decide::Send| matches!(send.command, Command::DrainAttempt(..));
    assert!(plan.sends.iter().any(told), "it saves first");
    cluster.seen.nodes.values_mut().for_each(|view| view.drains_sent.clear());
    cluster.settle();
    assert_eq!(cluster.ranks(&elastic), 7);
    assert!(cluster.preemptions.is_empty());
}

#[test]
fn a_gang_does_not_grow_for_little_or_at_the_cost_of_others() {
    let grown = |pace: f64, waits: bool, most: Option<u32>| {
        let mut quotas = Quotas::default();
        let tenant = Tenant::parse("research").expect("valid");
        quotas.listed.insert(tenant, TenantLimits { max_gpus: most, ..TenantLimits::default() });
        let mut cluster = Cluster::new(&[8], quotas);
        let other = cluster.submit(&Wanted { tenant: "products", ..wanted("", 4) });
        let elastic = cluster.submit(&Wanted { min_gpus: 2, ..wanted("", 8) });
        cluster.settle();
        if waits {
            cluster.submit(&Wanted { tenant: "products", ..wanted("", 8) });
        }
        cluster.cancel(&other);
        cluster.work(pace, 400 * SEC);
        cluster.settle();
        cluster.ranks(&elastic)
    };
    assert_eq!(grown(20.0, false, None), 8);
    assert_eq!(grown(20.0, false, Some(5)), 5, "no more than its tenant may have");
    assert_eq!(grown(20.0, true, None), 4, "another waits");
    assert_eq!(grown(40.0, false, None), 4, "it ends in less than ten minutes");
    assert_eq!(grown(0.0, false, None), 4, "its pace is not known");
}

#[test]
fn what_another_queue_is_sure_of_is_safe_from_higher_classes() {
    let quotas = with_classes(queues(&[("a", 4), ("b", 4)]));
    let mut cluster = Cluster::new(&[8], quotas);
    let own = cluster.submit(&wanted("b", 4));
    let low = cluster.submit(&wanted("a", 4));
    cluster.settle();
    let urgent = cluster.submit(&Wanted { priority: 100, ..wanted("a", 4) });
    cluster.settle();
    let ranks = [&own, &low, &urgent].map(|job| cluster.ranks(job));
    assert_eq!(ranks, [4, 0, 4], "its own queue's lower class makes room");
    // One that cannot be preempted does not borrow.
    let second = cluster.submit(&Wanted { priority: 100, ..wanted("a", 2) });
    cluster.cancel(&own);
    let plan = cluster.settle();
    assert_eq!(cluster.ranks(&second), 0);
    assert_eq!(
        why(&plan, &second),
        "waits for 2 cuda slots: queue a uses 4, is sure of 4, and a job that cannot be preempted borrows none"
    );
    assert_eq!(cluster.ranks(&low), 4, "its place is free");
}

#[test]
fn a_queue_has_no_more_than_it_may() {
    let mut quotas = queues(&[("a", 2)]);
    quotas.queues.by_name.get_mut("a").expect("there").most = slots(6);
    let mut cluster = Cluster::new(&[8], quotas);
    let first = cluster.submit(&wanted("a", 4));
    let second = cluster.submit(&wanted("a", 4));
    let elastic = cluster.submit(&Wanted { min_gpus: 1, ..wanted("a", 4) });
    let plan = cluster.settle();
    assert_eq!([&first, &second, &elastic].map(|job| cluster.ranks(job)), [4, 0, 2]);
    assert_eq!(why(&plan, &second), "waits for 4 cuda slots: queue a uses 6 of the 6 that it may");
}

#[test]
fn a_queue_keeps_its_order_for_what_it_is_sure_of() {
    let mut cluster = Cluster::new(&[4, 4], queues(&[("a", 4), ("b", 4)]));
    let running = cluster.submit(&wanted("a", 2));
    let other = cluster.submit(&wanted("b", 4));
    let borrowed = cluster.submit(&wanted("b", 2));
    cluster.settle();
    assert_eq!([&running, &other, &borrowed].map(|job| cluster.ranks(job)), [2, 4, 2]);
    let large = cluster.submit(&wanted("a", 4));
    let small = cluster.submit(&wanted("a", 2));
    let plan = cluster.settle();
    assert_eq!((cluster.ranks(&large), cluster.ranks(&small)), (0, 0), "{:?}", plan.waits);
    assert_eq!(cluster.ranks(&borrowed), 2, "the small one does not go first by asking for less");
    cluster.cancel(&running);
    cluster.settle();
    assert_eq!((cluster.ranks(&large), cluster.ranks(&borrowed)), (4, 0));
}

#[test]
fn a_queue_has_its_own_order_nodes_and_packing() {
    let mut quotas = queues(&[("pool", 0), ("spread", 0)]);
    let labels = BTreeMap::from([("pool".to_owned(), "p1".to_owned())]);
    quotas.queues.by_name.get_mut("pool").expect("there").node_labels = labels;
    quotas.queues.by_name.get_mut("spread").expect("there").packing = Packing::Spread;
    let mut cluster = Cluster::new(&[4, 4, 4, 4], quotas);
    let pooled = cluster.submit(&wanted("pool", 6));
    cluster.settle();
    assert_eq!(cluster.nodes_of(&pooled), BTreeSet::from(["t-1".to_owned(), "t-3".to_owned()]));
    let spread = cluster.submit(&wanted("spread", 4));
    let packed = cluster.submit(&wanted("", 2));
    let plan = cluster.settle();
    assert!(cluster.nodes_of(&spread).len() >= 2, "{:?}", cluster.nodes_of(&spread));
    assert_eq!(cluster.nodes_of(&packed).len(), 1);
    let more = cluster.submit(&wanted("pool", 10));
    assert!(!why(&plan, &more).contains("pool=p1"));
    let plan = cluster.settle();
    assert_eq!(
        why(&plan, &more),
        "waits for 10 slots: the connected trainer nodes have 8 of one kind, 2 free"
    );
}

#[test]
fn a_gang_stays_on_nodes_that_are_near_each_other() {
    // t-0 and t-2 are of p0, t-1 and t-3 of p1.
    let mut cluster = Cluster::new(&[4, 2, 4, 2], Quotas::default());
    let near = |gpus, mode| Wanted { topology: mode, ..wanted("", gpus) };
    let small = cluster.submit(&near(4, "require"));
    cluster.settle();
    assert_eq!(
        cluster.nodes_of(&small),
        BTreeSet::from(["t-1".to_owned(), "t-3".to_owned()]),
        "the smaller hole"
    );
    let large = cluster.submit(&near(10, "require"));
    let plan = cluster.settle();
    assert_eq!(cluster.ranks(&large), 0);
    let said = "waits for 10 slots: the connected trainer nodes have 8 of one kind, 8 free";
    assert_eq!(why(&plan, &large), said, "it never fits, and keeps nobody waiting");
    let other = cluster.submit(&wanted("", 2));
    cluster.settle();
    assert_eq!(cluster.ranks(&other), 2);
    cluster.cancel(&small);
    cluster.cancel(&large);
    let wide = cluster.submit(&near(10, "prefer"));
    cluster.settle();
    assert_eq!(cluster.ranks(&wide), 10, "where it must it goes further");
}

#[test]
fn a_strict_queue_lets_none_of_its_own_go_ahead() {
    let mut quotas = queues(&[("strict", 0)]);
    quotas.queues.by_name.get_mut("strict").expect("there").order = Some(QueueOrder::Strict);
    let mut cluster = Cluster::new(&[8], quotas);
    let running = cluster.submit(&wanted("", 6));
    cluster.settle();
    let first = cluster.submit(&wanted("strict", 8));
    let later = cluster.submit(&wanted("strict", 1));
    let other = cluster.submit(&wanted("", 1));
    let plan = cluster.settle();
    assert_eq!([&running, &first, &later, &other].map(|job| cluster.ranks(job)), [6, 0, 0, 1]);
    assert_eq!(why(&plan, &later), format!("waits behind job {first}, which waits for slots"));
}

#[test]
fn tenants_that_have_used_less_go_first() {
    let share = |share| TenantLimits { share: Some(share), ..TenantLimits::default() };
    let tenant = |name: &str| Tenant::parse(name).expect("valid");
    let listed = BTreeMap::from([(tenant("half"), share(1)), (tenant("whole"), share(2))]);
    let quotas = Quotas { listed, fair_share: Some(3600 * SEC), ..Quotas::default() };
    let mut cluster = Cluster::new(&[1], quotas);
    let of = |tenant: &'static str| Wanted { tenant, ..wanted("", 1) };
    let mut ran: BTreeMap<String, usize> = BTreeMap::new();
    let mut jobs: Vec<JobId> =
        (0..30).flat_map(|_| ["half", "whole"]).map(|tenant| cluster.submit(&of(tenant))).collect();
    for _ in 0..30 {
        cluster.settle();
        let at = jobs.iter().position(|job| cluster.ranks(job) > 0).expect("one runs");
        let job = jobs.remove(at);
        let name = cluster.state.job(&job).expect("there").record.spec.tenant.clone();
        *ran.entry(name).or_insert(0) += 1;
        cluster.now = cluster.now.plus(600 * SEC);
        cluster.cancel(&job);
    }
    assert_eq!(ran, BTreeMap::from([("half".to_owned(), 10), ("whole".to_owned(), 20)]));
    // A tenant that comes later is not owed the past for ever, and goes first until it has its share.
    let newcomer = cluster.submit(&of("new"));
    cluster.settle();
    assert_eq!(cluster.ranks(&newcomer), 1);
    let used = |name: &str| {
        cluster.state.usage(&tenant(name)).expect("used").months.values().next().unwrap()["cuda"]
    };
    assert!(used("whole") > used("half") && used("half") > 6_000_000, "{} {}", used("whole"), used("half"));
}

#[test]
fn a_job_that_has_run_for_as_long_as_it_may_saves_and_ends() {
    let mut cluster = Cluster::new(&[2], Quotas::default());
    let limited = cluster.submit(&Wanted { minutes: Some(10), ..wanted("", 2) });
    let next = cluster.submit(&wanted("", 2));
    cluster.settle();
    assert_eq!([&limited, &next].map(|job| cluster.ranks(job)), [2, 0]);
    cluster.now = cluster.now.plus(500 * SEC);
    // The time that it waits does not count.
    let writes =
        pause_job(&cluster.state, &limited, Pause { curates: false, reason: String::new() }).expect("open");
    writes.into_iter().for_each(|write| cluster.write(write));
    cluster.settle();
    assert_eq!([&limited, &next].map(|job| cluster.ranks(job)), [0, 2]);
    cluster.now = cluster.now.plus(3600 * SEC);
    cluster.cancel(&next);
    let writes = resume_job(&cluster.state, &limited).expect("paused");
    writes.into_iter().for_each(|write| cluster.write(write));
    cluster.settle();
    assert_eq!(cluster.ranks(&limited), 2);
    let left = cluster.state.job(&limited).expect("there").time_left(cluster.now).expect("limited");
    assert!((60 * SEC..100 * SEC).contains(&left), "{left:?}");
    // A wall clock that is set forward ends no job.
    cluster.seen.wall_ahead_millis = 3_600_000;
    cluster.settle();
    assert_eq!(cluster.ranks(&limited), 2);
    cluster.seen.wall_ahead_millis = 0;
    cluster.now = cluster.now.plus(left);
    let plan = cluster.decide();
    assert_eq!(why(&plan, &limited), "has run for 10 minutes, as long as it may: 2 ranks save and leave");
    let told = plan.sends.iter().any(|send| matches!(send.command, Command::DrainAttempt(..)));
    assert!(told, "it saves first");
    // Ranks that do not save are not waited for without end.
    cluster.now = cluster.now.plus(Limits::default().leave_within);
    cluster.decide();
    let job = &cluster.state.job(&limited).expect("there").record;
    let JobState::Failed { reason } = &job.state else { panic!("{:?}", job.state) };
    assert_eq!(
        reason,
        "it has run for 10 minutes, as long as it may (spec.timeLimitMinutes); it has no checkpoint"
    );
    // Trying again gives it as much time again.
    let limits = QueueLimits { max_open_jobs: 10_000, retry_after: SEC, tenant: TenantLimits::default() };
    let writes = retry_job(&cluster.state, &limited, limits, &Limits::default()).expect("failed");
    writes.into_iter().for_each(|write| cluster.write(write));
    cluster.settle();
    assert_eq!(cluster.ranks(&limited), 2);
    let left = cluster.state.job(&limited).expect("there").time_left(cluster.now).expect("limited");
    assert!(left > 590 * SEC, "{left:?}");
}

#[test]
fn a_queue_that_is_not_for_a_job_is_refused() {
    let mut quotas = queues(&[("a", 4), ("closed", 4)]);
    let closed = quotas.queues.by_name.get_mut("closed").expect("there");
    closed.tenants = Some(BTreeSet::from([Tenant::parse("products").expect("valid")]));
    let spec_of = |queue: &str| {
        let yaml = format!(
            "apiVersion: crescendo/v1\nkind: TrainingJob\nmetadata: {{name: trial, tenant: research}}\nspec:\n  queue: {queue}\n  model: {{preset: nano, weights: base.safetensors}}\n  stages:\n    - data: {{source: compose, subjects: s, pairs: 8}}\n      train: {{steps: 20}}\n"
        );
        spec::parse(yaml.as_bytes()).unwrap_or_else(|problems| panic!("{problems:?}"))
    };
    for queue in ["closed", "nowhere"] {
        let found = quotas.queues.overreach(&spec_of(queue)).expect("refused");
        assert_eq!(found.field, "spec.queue");
        let said = format!("{queue} is no queue for jobs of tenant research; those that are: a");
        assert_eq!(found.message, said);
    }
    assert_eq!(quotas.queues.overreach(&spec_of("a")), None);
    assert!(Quotas::default().queues.overreach(&spec_of("a")).is_some(), "there are none");
}

/// Eight slots, of which the tenant of most jobs may have four.
fn limited(order: QueueOrder) -> Cluster {
    let limits = TenantLimits { max_gpus: Some(4), ..TenantLimits::default() };
    let mut quotas = with_classes(Quotas { order, ..Quotas::default() });
    quotas.listed.insert(Tenant::parse("research").expect("valid"), limits);
    Cluster::new(&[8], quotas)
}

#[test]
fn what_is_left_of_a_limit_is_kept_for_the_first_that_it_is_too_little_for() {
    let mut cluster = limited(QueueOrder::Backfill);
    let first = cluster.submit(&wanted("", 2));
    let large = cluster.submit(&wanted("", 4));
    let small = cluster.submit(&wanted("", 1));
    let plan = cluster.settle();
    assert_eq!([&first, &large, &small].map(|job| cluster.ranks(job)), [2, 0, 1]);
    assert_eq!(why(&plan, &large), "waits for 4 GPUs: tenant research uses 3 of its 4 GPUs");
    // Others of the tenant go ahead of it, and make room as soon as that is enough.
    cluster.cancel(&first);
    cluster.settle();
    assert_eq!([&large, &small].map(|job| cluster.ranks(job)), [4, 0]);
    assert_eq!(cluster.preemptions, [(small, large)]);
}

#[test]
fn in_a_strict_order_nobody_passes_the_first_at_a_limit() {
    let mut cluster = limited(QueueOrder::Strict);
    cluster.submit(&wanted("", 2));
    let large = cluster.submit(&wanted("", 4));
    let small = cluster.submit(&wanted("", 1));
    let other = cluster.submit(&Wanted { tenant: "products", ..wanted("", 1) });
    let plan = cluster.settle();
    assert_eq!([&large, &small, &other].map(|job| cluster.ranks(job)), [0, 0, 1]);
    assert_eq!(why(&plan, &small), format!("waits behind job {large}, which waits for slots"));
}

#[test]
fn a_higher_class_takes_what_its_tenant_may_have() {
    let mut cluster = limited(QueueOrder::Backfill);
    let other = cluster.submit(&Wanted { tenant: "products", ..wanted("", 1) });
    let low = cluster.submit(&wanted("", 4));
    cluster.settle();
    let urgent = cluster.submit(&Wanted { priority: 100, ..wanted("", 3) });
    cluster.settle();
    assert_eq!(
        [&urgent, &low, &other].map(|job| cluster.ranks(job)),
        [3, 0, 1],
        "the other tenant's does not help"
    );
    assert_eq!(cluster.preemptions, [(low, urgent)]);
}

#[test]
fn a_job_that_is_larger_than_a_limit_holds_up_nobody() {
    let mut quotas = queues(&[("a", 7)]);
    let limits = TenantLimits { max_gpus: Some(2), ..TenantLimits::default() };
    quotas.listed.insert(Tenant::parse("research").expect("valid"), limits);
    let mut cluster = Cluster::new(&[8], quotas);
    let borrower = cluster.submit(&Wanted { tenant: "products", ..wanted("", 8) });
    cluster.settle();
    cluster.submit(&wanted("a", 8));
    let small = cluster.submit(&wanted("a", 1));
    cluster.settle();
    assert_eq!([&small, &borrower].map(|job| cluster.ranks(job)), [1, 0], "its queue is sure of it");
}
