//! Seeds of the simulation, the sameness of two runs of one, and bugs that have to be found.

use std::collections::BTreeSet;
use std::time::Duration;

use crescendo_simulation::plants::{PLANTS, Plant};
use crescendo_simulation::run::{Options, Outcome, run};
use crescendo_simulation::schedule::{
    CONTROLLERS, Event, Fault, JOBS, KINDS, MIN_FAULTS, MIN_KINDS, TRAINERS, What, Work, schedule,
};

/// As many as take about half a minute on one core.
const SEEDS: u64 = 40;

fn kinds() -> Vec<usize> {
    (0..KINDS.len()).collect()
}

fn outcome(seed: u64, kinds: &[usize], plant: Option<Plant>) -> Outcome {
    run(&Options { seed, events: schedule(seed, kinds), plant, keep_trace: false }).expect("the run begins")
}

#[test]
fn promises_hold_through_every_schedule() {
    for seed in 0..SEEDS {
        let found = outcome(seed, &kinds(), None);
        assert!(
            found.violations.is_empty(),
            "{:#?}\nreplay with: cargo run -p crescendo-simulation --bin simulate -- --seed {seed}",
            found.violations
        );
        assert!(found.faults >= 10 && found.simulated.as_secs() >= 600 && found.commits > 50, "{found:?}");
    }
}

#[test]
fn one_seed_twice_is_the_same_trace() {
    let all = kinds();
    let mut hashes = BTreeSet::new();
    for seed in 1000..1004 {
        let (one, other) = (outcome(seed, &all, None), outcome(seed, &all, None));
        assert_eq!((one.trace_hash, one.trace_lines), (other.trace_hash, other.trace_lines), "seed {seed}");
        hashes.insert(one.trace_hash);
    }
    assert_eq!(hashes.len(), 4, "other seeds are other traces");
}

/// In schedules without faults, so that nothing else can be the reason.
#[test]
fn each_planted_bug_breaks_its_promise() {
    let clean = outcome(0, &[], None);
    assert!(clean.violations.is_empty(), "{:#?}", clean.violations);
    for (plant, promise) in PLANTS {
        let found = (0..20).any(|seed| {
            let outcome = outcome(seed, &[], Some(plant));
            outcome.violations.iter().any(|violation| violation.promise == promise)
        });
        assert!(found, "{plant:?} is not found by promise {promise}");
    }
}

#[test]
fn a_schedule_has_what_it_has_to_have_and_follows_from_its_seed() {
    let all = kinds();
    for seed in 0..200 {
        let events = schedule(seed, &all);
        assert_eq!(events, schedule(seed, &all));
        let faults: Vec<_> = events
            .iter()
            .filter_map(|event| match &event.what {
                What::Fault(fault) => Some(std::mem::discriminant(fault)),
                What::Work(_) => None,
            })
            .collect();
        let kinds = faults.iter().fold(Vec::new(), |mut kinds, kind| {
            if !kinds.contains(kind) {
                kinds.push(*kind);
            }
            kinds
        });
        let submits = events.iter().filter(|event| matches!(event.what, What::Work(Work::Submit { .. })));
        assert!(faults.len() >= MIN_FAULTS && kinds.len() >= MIN_KINDS && submits.count() == JOBS);
    }
}

fn fault(at: u64, fault: Fault) -> Event {
    Event { at: Duration::from_secs(at), what: What::Fault(fault) }
}

/// A job of one gang of two that trains for so many steps, once its pairs are made.
fn one_job(steps: u64) -> Event {
    let spec = format!(
        "
apiVersion: crescendo/v1
kind: TrainingJob
metadata: {{name: long}}
spec:
  model: {{preset: nano, precision: f32, weights: base.safetensors}}
  resources: {{gpus: 2}}
  stages:
    - name: stage-1
      references: 1
      data: {{source: compose, subjects: subjects, pairs: 8, minPairs: 4, unitSize: 4}}
      train: {{adapter: {{rank: 4}}, steps: {steps}, globalBatch: 2}}
  checkpoints: {{every: 500, keepLast: 2}}
"
    );
    Event { at: Duration::from_secs(1), what: What::Work(Work::Submit { job: 0, spec }) }
}

fn run_events(seed: u64, events: Vec<Event>) -> Outcome {
    run(&Options { seed, events, plant: None, keep_trace: false }).expect("the run begins")
}

/// Nothing is wrong with any node: every end of an attempt would be the controllers' fault.
#[test]
fn controllers_that_stand_still_for_70_seconds_restart_no_gang() {
    let lasts = Duration::from_secs(70);
    let gone = |controller| Fault::KillController { controller, down: Duration::from_secs(300) };
    for seed in 0..6 {
        let together = vec![one_job(400), fault(60, Fault::PauseControllers { lasts })];
        let mut alone = vec![one_job(400), fault(20, gone(1)), fault(20, gone(2))];
        alone.push(fault(60, Fault::PauseController { controller: 0, lasts }));
        for events in [together, alone] {
            let found = run_events(seed, events);
            assert!(found.violations.is_empty(), "seed {seed}: {:#?}", found.violations);
            assert_eq!(found.ended.get("succeeded"), Some(&1), "seed {seed}: {:?}", found.ended);
        }
    }
}

/// Gangs fail until they are held back, and then every clock goes back ten minutes, or forward.
#[test]
fn a_clock_that_is_set_holds_up_no_retry() {
    let lasts = Duration::from_secs(25);
    for (seed, millis) in (0..3).flat_map(|seed| [(seed, -600_000), (seed, 600_000)]) {
        let mut events = vec![one_job(60)];
        events.extend((0..TRAINERS).map(|node| fault(2, Fault::FailFast { node, lasts })));
        events.extend((0..CONTROLLERS).map(|controller| fault(26, Fault::StepClock { controller, millis })));
        let found = run_events(seed, events);
        assert!(found.violations.is_empty(), "seed {seed} {millis}: {:#?}", found.violations);
        assert_eq!(found.ended.get("succeeded"), Some(&1), "seed {seed} {millis}: {:?}", found.ended);
        assert!(found.last_end < Duration::from_secs(200), "seed {seed} {millis}: {:?}", found.last_end);
    }
}

/// No checkpoint is due in between: each stop would be one more failure in a row. Controllers go first in every other one.
#[test]
fn a_dozen_stops_of_everything_fail_no_job() {
    for seed in 0..4 {
        let mut events = vec![one_job(300)];
        events.extend((0..12).map(|n| {
            let controllers_first = Duration::from_secs(if n % 2 == seed % 2 { 0 } else { 3 });
            fault(40 + n * 70, Fault::StopAll { controllers_first, down: Duration::from_secs(50) })
        }));
        let found = run_events(seed, events);
        assert!(found.violations.is_empty(), "seed {seed}: {:#?}", found.violations);
        assert_eq!(found.ended.get("succeeded"), Some(&1), "seed {seed}: {:?}", found.ended);
    }
}

/// Every controller is gone for a day. The gang steps on, and when they are back it is found, not started again.
#[test]
fn training_goes_on_for_a_day_without_a_control_plane() {
    let day = Duration::from_secs(86_400);
    let mut events = vec![one_job(124_000)];
    events.extend(
        (0..CONTROLLERS).map(|controller| fault(60, Fault::KillController { controller, down: day })),
    );
    let found = run_events(1, events);
    assert!(found.violations.is_empty(), "{:#?}", found.violations);
    assert!(found.simulated > day, "{:?}", found.simulated);
    // Trained while nobody looked: what was left after the day is less than a quarter of an hour.
    assert!(found.simulated < day + Duration::from_secs(1_200), "{:?}", found.simulated);
    assert_eq!(found.ended.get("succeeded"), Some(&1), "{:?}", found.ended);
}

/// The ranks of one node stand still, for longer than anyone waits. The gang is started again elsewhere within 30 s.
#[test]
fn a_gang_that_hangs_is_started_again_elsewhere_within_30_s() {
    let spec = "
apiVersion: crescendo/v1
kind: TrainingJob
metadata: {name: hung}
spec:
  model: {preset: nano, precision: f32, weights: base.safetensors}
  resources: {gpus: GPUS}
  stages:
    - name: stage-1
      references: 1
      data: {source: compose, subjects: subjects, pairs: 8, minPairs: 4, unitSize: 4}
      train: {adapter: {rank: 4}, steps: 200, globalBatch: 6}
  checkpoints: {every: 10, keepLast: 2}
";
    let at = Duration::from_secs;
    let (began, lasts) = (at(60), at(3000));
    for gpus in ["1", "3"] {
        let spec = spec.replace("GPUS", gpus);
        let mut hung = 0;
        for node in 0..3 {
            let events = vec![
                Event { at: at(1), what: What::Work(Work::Submit { job: 0, spec: spec.clone() }) },
                Event { at: began, what: What::Fault(Fault::Hang { node, lasts }) },
            ];
            let found =
                run(&Options { seed: 7, events, plant: None, keep_trace: true }).expect("the run begins");
            assert!(found.violations.is_empty(), "{:#?}", found.violations);
            // Times at which an attempt was written: when it was placed, started anew, and done.
            let written = found.lines.iter().filter(|line| line.contains("attempts/"));
            let times: Vec<f64> =
                written.filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect();
            let after: Vec<f64> = times.iter().copied().filter(|time| *time > began.as_secs_f64()).collect();
            if times.len() == 2 {
                continue;
            }
            hung += 1;
            assert!(after.first().is_some_and(|time| *time < 90.0), "gpus {gpus}, node {node}: {times:?}");
            // It went where nothing hangs, and was done long before the fault's end.
            assert!(
                after.len() == 2 && after.iter().all(|time| *time < 600.0),
                "gpus {gpus}, node {node}: {times:?}"
            );
        }
        assert_eq!(hung, 1, "the leading rank is on one node");
    }
}
