//! Seeds of the simulation, the sameness of two runs of one, and bugs that have to be found.

use crescendo_simulation::plants::{PLANTS, Plant};
use crescendo_simulation::run::{Options, Outcome, run};
use crescendo_simulation::schedule::{KINDS, schedule};

/// Kinds of faults that break a promise today; docs/reliability.md has each with its seed.
const KNOWN: [&str; 1] = ["step clock"];
/// As many as take about a minute on one core.
const SEEDS: u64 = 60;

fn kinds() -> Vec<usize> {
    (0..KINDS.len()).filter(|kind| !KNOWN.contains(&KINDS[*kind])).collect()
}

fn outcome(seed: u64, kinds: &[usize], plant: Option<Plant>) -> Outcome {
    run(&Options { seed, events: schedule(seed, kinds), plant, keep_trace: false }).expect("the run begins")
}

#[test]
fn promises_hold_through_every_schedule() {
    let flags: String = KNOWN.iter().map(|name| format!(" --without {name:?}")).collect();
    for seed in 0..SEEDS {
        let found = outcome(seed, &kinds(), None);
        assert!(
            found.violations.is_empty(),
            "{:#?}\nreplay with: cargo run -p crescendo-simulation --bin simulate -- --seed {seed}{flags}",
            found.violations
        );
        assert!(found.faults >= 10 && found.simulated.as_secs() >= 600 && found.commits > 50, "{found:?}");
    }
}

/// With every kind of fault there is.
#[test]
fn one_seed_twice_is_the_same_trace() {
    let all: Vec<usize> = (0..KINDS.len()).collect();
    for seed in 1000..1008 {
        let (one, other) = (outcome(seed, &all, None), outcome(seed, &all, None));
        assert_eq!((one.trace_hash, one.trace_lines), (other.trace_hash, other.trace_lines), "seed {seed}");
    }
    assert_ne!(outcome(1, &all, None).trace_hash, outcome(2, &all, None).trace_hash);
}

/// In schedules without faults, so that nothing else can be the reason.
#[test]
fn each_planted_bug_breaks_its_promise() {
    for (plant, promise) in PLANTS {
        let seeds = 0..20;
        let clean = seeds.clone().take(1).all(|seed| outcome(seed, &[], None).violations.is_empty());
        assert!(clean, "a schedule without faults breaks nothing");
        let found = seeds.clone().any(|seed| {
            let outcome = outcome(seed, &[], Some(plant));
            outcome.violations.iter().any(|violation| violation.promise == promise)
        });
        assert!(found, "{plant:?} is not found by promise {promise}");
    }
}
