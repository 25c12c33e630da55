//! What happens when: a pure function of the seed.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::rng::Rng;

pub const CONTROLLERS: usize = 3;
pub const TRAINERS: usize = 3;
pub const CURATORS: usize = 2;
pub const NODES: usize = TRAINERS + CURATORS;
pub const JOBS: usize = 6;
/// People, as a peer of the network: the nodes come before.
pub const PEOPLE: usize = NODES;
/// Faults of one schedule, at least.
pub const MIN_FAULTS: usize = 10;
/// Kinds among them, at least.
pub const MIN_KINDS: usize = 4;
/// No fault begins after this.
pub const QUIET_AFTER: Duration = Duration::from_secs(420);
/// A schedule lasts this long at least.
pub const LASTS: Duration = Duration::from_secs(600);
/// Once faults have stopped, every job ends within this.
pub const PATIENCE: Duration = Duration::from_secs(1000);

/// What people do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    Submit {
        job: usize,
        spec: String,
    },
    Cancel {
        job: usize,
    },
    /// Once it has ended.
    Delete {
        job: usize,
        keep_pairs: bool,
    },
    Pause {
        job: usize,
        keep_curating: bool,
        lasts: Duration,
    },
    Drain {
        node: usize,
        undo: bool,
    },
    Watch {
        job: usize,
    },
}

/// What goes wrong. Those with a duration end by themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    KillController {
        controller: usize,
        down: Duration,
    },
    PauseController {
        controller: usize,
        lasts: Duration,
    },
    StepClock {
        controller: usize,
        millis: i64,
    },
    /// It comes back under the same name, as another process.
    KillNode {
        node: usize,
        down: Duration,
    },
    PauseNode {
        node: usize,
        lasts: Duration,
    },
    FailFast {
        node: usize,
        lasts: Duration,
    },
    Hang {
        node: usize,
        lasts: Duration,
    },
    /// It speaks for generations and leases that are over.
    Lie {
        node: usize,
    },
    Cut {
        peer: usize,
        controller: usize,
        up: bool,
        down: bool,
        lasts: Duration,
    },
    Delay {
        peer: usize,
        by: Duration,
        lasts: Duration,
    },
    LoseAnswers {
        peer: usize,
        permille: u64,
        lasts: Duration,
    },
    CutStore {
        controller: usize,
        lasts: Duration,
    },
    LoseStoreAnswers {
        permille: u64,
        lasts: Duration,
    },
    SlowDisk {
        millis: u64,
        lasts: Duration,
    },
    FullDisk {
        lasts: Duration,
    },
    /// The store forgets its leases, and what hangs on them.
    EndLeases,
    /// The store forgets its history.
    Compact,
    /// Cut from every controller at once.
    Isolate {
        peer: usize,
        up: bool,
        down: bool,
        lasts: Duration,
    },
    /// Every controller stands still, as when the machine sleeps.
    PauseControllers {
        lasts: Duration,
    },
    /// A person stops everything, the controllers a little before the nodes, and starts it again.
    StopAll {
        controllers_first: Duration,
        down: Duration,
    },
    /// Another machine calls itself by the node's name.
    Twin {
        node: usize,
        lasts: Duration,
    },
}

/// Kinds of faults, in the order in which `draw` numbers them.
pub const KINDS: [&str; 21] = [
    "kill controller",
    "pause controller",
    "step clock",
    "kill node",
    "pause node",
    "fail fast",
    "hang",
    "lie",
    "cut",
    "delay",
    "lose answers",
    "cut store",
    "lose store answers",
    "slow disk",
    "full disk",
    "end leases",
    "compact",
    "isolate",
    "pause controllers",
    "twin",
    "stop all",
];

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    Work(Work),
    Fault(Fault),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub at: Duration,
    pub what: What,
}

fn seconds(rng: &mut Rng, least: u64, end: u64) -> Duration {
    Duration::from_millis(rng.between(least * 1000, end * 1000))
}

/// The faults of `kinds` alone, which are numbers of [`KINDS`].
pub fn schedule(seed: u64, kinds: &[usize]) -> Vec<Event> {
    let mut rng = Rng::new(seed);
    let mut events = work(&mut rng);
    events.extend(deletions(&mut Rng::new(seed ^ DELETIONS)));
    events.extend(pauses(&mut Rng::new(seed ^ PAUSES)));
    if !kinds.is_empty() {
        let count = MIN_FAULTS + rng.index(6);
        let least_kinds = MIN_KINDS.min(kinds.len());
        let mut drawn = Vec::new();
        let mut seen = BTreeSet::new();
        while drawn.len() < count || seen.len() < least_kinds {
            let kind = kinds[rng.index(kinds.len())];
            seen.insert(kind);
            let fault = draw(&mut rng, kind);
            drawn.push(Event { at: seconds(&mut rng, 5, QUIET_AFTER.as_secs()), what: What::Fault(fault) });
        }
        events.extend(drawn);
    }
    events.sort_by_key(|event| event.at);
    events
}

fn work(rng: &mut Rng) -> Vec<Event> {
    let mut events = Vec::new();
    for job in 0..JOBS {
        let at = seconds(rng, 1, 240);
        events.push(Event { at, what: What::Work(Work::Submit { job, spec: spec(rng, job) }) });
        events.push(Event { at: at + seconds(rng, 1, 20), what: What::Work(Work::Watch { job }) });
    }
    if rng.chance(400) {
        let job = rng.index(JOBS);
        events.push(Event { at: seconds(rng, 20, 300), what: What::Work(Work::Cancel { job }) });
    }
    let (node, at) = (rng.index(NODES), seconds(rng, 20, 300));
    events.push(Event { at, what: What::Work(Work::Drain { node, undo: false }) });
    let back = at + seconds(rng, 10, 60);
    events.push(Event { at: back, what: What::Work(Work::Drain { node, undo: true }) });
    events
}

/// Apart from the rest of the schedule, so that it stays as it was without them.
const DELETIONS: u64 = 0xde1e7e;

/// Some jobs are to be deleted as soon as they have ended.
fn deletions(rng: &mut Rng) -> Vec<Event> {
    let mut events = Vec::new();
    for job in 0..JOBS {
        if job == 0 || rng.chance(400) {
            let keep_pairs = rng.chance(300);
            let at = seconds(rng, 10, 400);
            events.push(Event { at, what: What::Work(Work::Delete { job, keep_pairs }) });
        }
    }
    events
}

/// Apart from the rest, for the same reason.
const PAUSES: u64 = 0x9a05e5;

/// Some jobs are paused for a while, wherever they are then.
fn pauses(rng: &mut Rng) -> Vec<Event> {
    let drawn = (0..1 + rng.index(3)).map(|_| {
        let (job, keep_curating) = (rng.index(JOBS), rng.chance(300));
        let lasts = seconds(rng, 1, 90);
        let pause = Work::Pause { job, keep_curating, lasts };
        Event { at: seconds(rng, 20, 400), what: What::Work(pause) }
    });
    drawn.collect()
}

fn draw(rng: &mut Rng, kind: usize) -> Fault {
    let (controller, node) = (rng.index(CONTROLLERS), rng.index(NODES));
    let trainer = rng.index(TRAINERS);
    let peer = rng.index(NODES + 1);
    match kind {
        0 => Fault::KillController { controller, down: seconds(rng, 1, 60) },
        1 => Fault::PauseController { controller, lasts: seconds(rng, 1, 40) },
        2 => {
            let millis = i64::try_from(rng.between(1_000, 600_000)).unwrap_or(0);
            Fault::StepClock { controller, millis: if rng.chance(500) { millis } else { -millis } }
        }
        3 => Fault::KillNode { node, down: seconds(rng, 0, 40) },
        4 => Fault::PauseNode { node, lasts: seconds(rng, 1, 20) },
        5 => Fault::FailFast { node, lasts: seconds(rng, 5, 30) },
        6 => Fault::Hang { node: trainer, lasts: seconds(rng, 5, 40) },
        7 => Fault::Lie { node },
        8 => {
            let (up, down) = [(true, true), (true, false), (false, true)][rng.index(3)];
            Fault::Cut { peer, controller, up, down, lasts: seconds(rng, 2, 35) }
        }
        9 => {
            let by = Duration::from_millis(rng.between(20, 400));
            Fault::Delay { peer, by, lasts: seconds(rng, 5, 60) }
        }
        10 => Fault::LoseAnswers { peer, permille: rng.between(100, 600), lasts: seconds(rng, 5, 40) },
        11 => Fault::CutStore { controller, lasts: seconds(rng, 1, 30) },
        12 => Fault::LoseStoreAnswers { permille: rng.between(50, 400), lasts: seconds(rng, 5, 30) },
        13 => Fault::SlowDisk { millis: rng.between(100, 3000), lasts: seconds(rng, 5, 30) },
        14 => Fault::FullDisk { lasts: seconds(rng, 2, 25) },
        15 => Fault::EndLeases,
        16 => Fault::Compact,
        17 => {
            let (up, down) = [(true, true), (true, false), (false, true)][rng.index(3)];
            Fault::Isolate { peer, up, down, lasts: seconds(rng, 2, 100) }
        }
        18 => Fault::PauseControllers { lasts: seconds(rng, 1, 90) },
        19 => Fault::Twin { node, lasts: seconds(rng, 5, 60) },
        _ => {
            let controllers_first = if rng.chance(500) { Duration::ZERO } else { seconds(rng, 0, 20) };
            Fault::StopAll { controllers_first, down: seconds(rng, 45, 90) }
        }
    }
}

/// A small job: one stage or two, one rank or two.
fn spec(rng: &mut Rng, job: usize) -> String {
    let gpus = rng.between(1, 4);
    let min_gpus = rng.between(1, gpus + 1);
    let priority = rng.below(3) * 10;
    let limit =
        if rng.chance(150) { format!("  timeLimitMinutes: {}\n", rng.between(1, 4)) } else { String::new() };
    let queue = if rng.chance(500) { "a" } else { "b" };
    let tenant = if rng.chance(500) { "research" } else { "products" };
    let mut stages = String::new();
    for stage in 1..=rng.between(1, 3) {
        let pairs = rng.between(16, 80);
        let steps = rng.between(40, 160);
        stages.push_str(&format!(
            "
    - name: stage-{stage}
      references: 1
      data: {{source: compose, subjects: subjects, pairs: {pairs}, minPairs: 4, unitSize: 4}}
      train: {{adapter: {{rank: 4}}, steps: {steps}, globalBatch: 6}}"
        ));
    }
    format!(
        "
apiVersion: crescendo/v1
kind: TrainingJob
metadata: {{name: job-{job}, tenant: {tenant}}}
spec:
  model: {{preset: nano, precision: f32, weights: base.safetensors}}
  resources: {{gpus: {gpus}, minGpus: {min_gpus}}}
  priority: {priority}
  queue: {queue}
{limit}  stages:{stages}
  checkpoints: {{every: {every}, keepLast: 2}}
",
        every = rng.between(5, 15)
    )
}
