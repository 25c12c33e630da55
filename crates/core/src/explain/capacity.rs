//! Waiting for slots: who holds them, and what would have to end.

use std::time::Duration;

use super::progress::stage_ends_in;
use super::words::{count, span};
use super::{Explanation, MAX_NODES, View, silent};
use crate::decide::free_slots;
use crate::ids::{JobId, NodeId, StageRef};
use crate::placement::{self, NodeNeeds, Slots};
use crate::records::{AttemptRecord, NodeKind, NodeRecord};
use crate::sizes::gigabytes;
use crate::spec::TopologyMode;
use crate::state::{Job, Stage};

/// Nodes that are named in one line.
const MAX_LISTED: usize = 8;

/// A trainer node as placement sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRoom {
    pub node: NodeId,
    /// `cpu` or `cuda`.
    pub device: String,
    pub slots: u32,
    /// Slots that a gang of this job could take now.
    pub free: u32,
    /// It is about to leave, or a person has said so: it gets nothing new.
    pub draining: bool,
    /// Time since it was heard of, if it is silent: it gets no work then.
    pub silent_for: Option<Duration>,
}

/// Another job that holds slots, or goes first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocker {
    /// `None`: the reader may not see it.
    pub job: Option<JobId>,
    pub priority: i32,
    /// Slots that it holds.
    pub slots: u32,
    /// Until its present stage is done, at its present pace.
    pub stage_ends_in: Option<Duration>,
    /// Its stages after the present one, which want slots again.
    pub stages_after: usize,
    /// It would be enough if all jobs with this mark gave their slots back.
    pub enough: bool,
}

pub(super) fn no_trainer(view: &View<'_>) -> Explanation {
    let mut findings = silent(view, NodeKind::Trainer);
    if findings.is_empty() {
        let known = view.state.nodes().any(|record| record.kind == NodeKind::Trainer);
        findings.push(if known {
            "no trainer that is connected takes new work".to_owned()
        } else {
            "no trainer node has ever connected to this cluster".to_owned()
        });
    }
    Explanation {
        findings,
        remedies: vec![
            "start a trainer node, or find out why it does not connect: its log says what it tried"
                .to_owned(),
        ],
        nodes: node_rooms(view, None),
        ..Explanation::default()
    }
}

/// Trainers are connected, and none that the spec asks for.
pub(super) fn no_such_trainer(view: &View<'_>, job: &Job, needs: &str) -> Explanation {
    let small = too_small(view, job, &NodeNeeds::of(job, &view.limits.quotas, view.state));
    let mut remedies = vec![
        format!("start a trainer node with {needs} (--labels gives it labels)"),
        "or correct spec.resources.device and nodeLabels: crescendo nodes shows what there is".to_owned(),
    ];
    if small.is_some() {
        remedies.push(
            "or have it need less: train.microBatch, the adapter's rank, model.precision: fp8".to_owned(),
        );
    }
    Explanation {
        findings: small.into_iter().chain(silent(view, NodeKind::Trainer)).collect(),
        remedies,
        nodes: node_rooms(view, None),
        ..Explanation::default()
    }
}

/// Which nodes are kept from it because their GPUs have too little memory.
fn too_small(view: &View<'_>, job: &Job, needs: &NodeNeeds<'_>) -> Option<String> {
    let trainers = view.state.nodes().filter(|node| node.kind == NodeKind::Trainer);
    let small = trainers.filter(|node| needs.is_too_small(node));
    let has = |node: &NodeRecord| {
        format!("{} has {}", node.id, gigabytes(node.device_memory_bytes.unwrap_or_default()))
    };
    let small: Vec<String> = small.map(has).collect();
    let listed = small.get(..small.len().min(MAX_LISTED))?;
    let wanted = gigabytes(needs.memory_bytes());
    let why = match job.record.spec.resources.device_memory_gb {
        Some(_) => format!("spec.resources.deviceMemoryGb asks for {wanted}"),
        None => format!(
            "a rank needs {wanted} at least by the estimate, unless spec.resources.deviceMemoryGb says otherwise"
        ),
    };
    let more = match small.len() - listed.len() {
        0 => String::new(),
        more => format!(", and {more} more have too little"),
    };
    (!listed.is_empty()).then(|| format!("GPU memory: {why}; {}{more}", listed.join(", ")))
}

/// A job that goes first waits for slots, and no later one takes them away.
pub(super) fn behind(view: &View<'_>, job: &Job, index: usize, first: Option<&Job>) -> Explanation {
    let Some(first) = first else { return Explanation::default() };
    let first_index = first.current_stage().unwrap_or(0);
    let name = view.name(first);
    let (priority, own) = (first.record.spec.priority, job.record.spec.priority);
    let (theirs, ours) = (&first.record.spec, &job.record.spec);
    let why = if priority > own {
        "has the higher priority"
    } else if view.limits.quotas.fair_share.is_some() && theirs.tenant != ours.tenant {
        "is of a tenant that has used less for its share"
    } else if first.order() <= job.order() {
        "was submitted earlier"
    } else {
        "is in a queue that is sure of these slots"
    };
    let mut blockers = vec![blocker(view, first, 0, None)];
    // Those that keep the first one waiting; whether they are enough for this one is another question.
    blockers.extend(
        waiting(view, first, first_index)
            .blockers
            .into_iter()
            .map(|blocker| Blocker { enough: false, ..blocker }),
    );
    let mut remedies =
        vec![format!("submit with spec.priority above {priority} (it is {own}) to go before {name}")];
    if view.shows(first) {
        remedies.push(format!("or see what {name} waits for: crescendo explain {}", first.record.id));
    }
    Explanation {
        summary: format!("waits behind {name}, which {why} and waits for slots"),
        findings: vec![
            format!("{name} has priority {priority} and needs {}", count(least_gang(first, first_index), "slot")),
            format!("this job has priority {own} and needs {}", count(least_gang(job, index), "slot")),
            "slots that become free are kept for who goes first, so that small jobs cannot starve a large one".to_owned(),
        ],
        remedies,
        nodes: node_rooms(view, job.stages.get(index).map(|stage| &stage.id)),
        blockers,
        ..Explanation::default()
    }
}

/// Ranks of the smallest gang that a stage allows.
fn least_gang(job: &Job, index: usize) -> u32 {
    let sizes = job.stage_spec(index).map(|spec| placement::gang_sizes(&job.record.spec, spec));
    sizes.and_then(|sizes| sizes.last().copied()).unwrap_or(job.record.spec.resources.gpus)
}

/// What a tenant's quota of slots says.
pub(super) struct TenantGpus<'t> {
    pub tenant: &'t str,
    pub wanted: u32,
    pub used: u32,
    pub limit: u32,
}

pub(super) fn over_quota(view: &View<'_>, quota: &TenantGpus<'_>) -> Explanation {
    let TenantGpus { tenant, wanted, used, limit } = *quota;
    let left = limit.saturating_sub(used);
    let mut findings =
        vec![format!("it needs {}, and its tenant has {left} of {limit} left", count(wanted, "GPU"))];
    let holding: Vec<Blocker> = holders(view)
        .filter(|(other, ..)| other.record.spec.tenant == tenant)
        .map(|(other, stage, attempt)| {
            blocker(view, other, attempt.ranks.len(), stage_ends_in(view, other, stage, attempt))
        })
        .take(MAX_NODES)
        .collect();
    if let Some(first) = holding
        .iter()
        .filter(|blocker| blocker.slots >= wanted.saturating_sub(left))
        .min_by_key(|blocker| (blocker.stage_ends_in.is_none(), blocker.stage_ends_in))
        && let Some(ends_in) = first.stage_ends_in
    {
        findings.push(format!(
            "the first of its jobs that holds enough ends its stage in about {}",
            span(ends_in)
        ));
    }
    let mut remedies = Vec::new();
    if wanted <= limit {
        remedies.push(format!("wait until jobs of tenant {tenant} give slots back, or cancel one of them"));
    }
    let smaller = left.min(wanted.saturating_sub(1));
    if smaller > 0 {
        remedies.push(format!("or submit with spec.resources.minGpus at {smaller} or less"));
    }
    remedies.push(format!(
        "or ask an admin to raise maxGpus of tenant {tenant} to {} or more",
        used.saturating_add(wanted)
    ));
    Explanation { findings, remedies, blockers: holding, ..Explanation::default() }
}

/// The queue uses as many slots as it may.
pub(super) fn queue_full(
    view: &View<'_>,
    queue: &str,
    device: &str,
    (wanted, limit): (u32, u32),
) -> Explanation {
    let mut remedies = Vec::new();
    if wanted <= limit {
        remedies.push(format!("wait until jobs of queue {queue} give slots back"));
    }
    remedies.push("or submit to another queue (spec.queue): crescendo queues shows them".to_owned());
    remedies.push(format!("or ask an admin to raise queues.{queue}.max.{device}"));
    Explanation { remedies, nodes: node_rooms(view, None), ..Explanation::default() }
}

/// A job that is not preemptible waits for what its queue is sure of.
pub(super) fn nothing_borrowed(
    view: &View<'_>,
    queue: &str,
    device: &str,
    (wanted, guaranteed): (u32, u32),
) -> Explanation {
    let mut remedies = Vec::new();
    if wanted <= guaranteed {
        remedies.push(format!("wait until jobs of queue {queue} give slots back"));
    }
    remedies.push("or submit with a spec.priority of a class that is preemptible: it may borrow".to_owned());
    remedies.push(format!("or ask an admin to raise queues.{queue}.guaranteed.{device}"));
    Explanation {
        findings: vec![
            "slots that a queue borrows are taken back as soon as another is sure of them".to_owned(),
        ],
        remedies,
        nodes: node_rooms(view, None),
        ..Explanation::default()
    }
}

/// Nodes that get nothing new, if there are any.
fn draining(nodes: &[NodeRoom]) -> Option<String> {
    let draining = nodes.iter().filter(|node| node.draining);
    let draining: Vec<String> = draining.map(|node| format!("{} ({})", node.node, node.slots)).collect();
    (!draining.is_empty()).then(|| format!("nodes that drain get nothing new: {}", draining.join(", ")))
}

/// What to do where even an empty cluster has too few slots.
fn more_slots(missing: u32, unseen: u32, device: &str) -> Vec<String> {
    let mut remedies = Vec::new();
    if unseen >= missing {
        remedies.push(format!("bring the silent nodes back: they have {}", count(unseen, "slot")));
    }
    remedies.push(format!("add trainer nodes with {missing} more {device} slots"));
    remedies
}

pub(super) fn waiting(view: &View<'_>, job: &Job, index: usize) -> Explanation {
    let (Some(spec), Some(stage)) = (job.stage_spec(index), job.stages.get(index)) else {
        return Explanation::default();
    };
    let sizes = placement::gang_sizes(&job.record.spec, spec);
    let least = sizes.last().copied().unwrap_or(0);
    let needs = NodeNeeds::of(job, &view.limits.quotas, view.state);
    let is_met = |node: &NodeId| view.state.node(node).is_some_and(|node| needs.are_met_by(node));
    let all = slots_now(view);
    let mut nodes = rooms_in(view, &all, Some(&stage.id));
    let slots = all.among(is_met);
    nodes.retain(|node| is_met(&node.node));
    let (blockers, goes_on_in) = blockers(view, job, &stage.id, &slots, &sizes);
    let reachable = || nodes.iter().filter(|node| node.silent_for.is_none() && !node.draining);
    let (device, total) = most_of_a_kind(reachable().map(|node| (node.device.as_str(), node.slots)));
    let (_, free) = most_of_a_kind(reachable().map(|node| (node.device.as_str(), node.free)));
    let unseen: u32 = nodes.iter().filter(|node| node.silent_for.is_some()).map(|node| node.slots).sum();

    let mut findings = vec![format!("needs {} of one kind, all at once", wanted(&sizes))];
    if !needs.are_none() {
        findings.push(format!("only nodes with {needs} count"));
    }
    findings.extend(too_small(view, job, &needs));
    findings.extend(near(view, job, &slots, &stage.id, least));
    findings.push(match reachable().filter(|node| node.device == device).max_by_key(|node| node.free) {
        Some(node) if node.free > 0 => format!(
            "{free} of {} are free, most of them on {}: {}",
            count(total, &format!("{device} slot")),
            node.node,
            node.free
        ),
        Some(_) | None => format!("none of {} is free", count(total, &format!("{device} slot"))),
    });
    findings.extend(draining(&nodes));
    findings.extend(silent(view, NodeKind::Trainer));
    let enough: Vec<&Blocker> = blockers.iter().filter(|blocker| blocker.enough).collect();
    if least > total {
        findings.push(format!("even with nothing else running it would not fit: {least} of {total}"));
    } else if !enough.is_empty() {
        let held: u32 = enough.iter().map(|blocker| blocker.slots).sum();
        findings.push(format!(
            "it would fit once {} gave back {}{}",
            names(&enough),
            count(held, "slot"),
            goes_on_in
                .map_or_else(String::new, |wait| format!(", in about {} at the present pace", span(wait)))
        ));
    }

    let mut remedies = if least > total {
        more_slots(least - total, unseen, device)
    } else {
        vec![match goes_on_in {
            Some(_) => "wait: it starts by itself as soon as there is room".to_owned(),
            None => "wait for one of the jobs below to end, or add trainer nodes".to_owned(),
        }]
    };
    if let Some(smaller) = smaller_gang(&slots, &stage.id, least) {
        remedies.push(format!(
            "or submit with spec.resources.minGpus at {smaller} or less: it then starts at once on {}",
            count(smaller, "slot")
        ));
    }
    for blocker in enough.iter().filter(|blocker| blocker.priority <= job.record.spec.priority).take(3) {
        if let Some(id) = &blocker.job {
            remedies.push(format!("or give up job {id}, which goes behind this one: crescendo cancel {id}"));
        }
    }
    Explanation {
        summary: format!("waits for {}: {free} of {total} are free", count(least, "slot")),
        findings,
        remedies,
        nodes,
        blockers,
        goes_on_in,
        ..Explanation::default()
    }
}

/// How much room there is on nodes near each other, for a gang that is to be on such.
fn near(view: &View<'_>, job: &Job, slots: &Slots, stage: &StageRef, least: u32) -> Option<String> {
    let topology = job.record.spec.resources.topology.as_ref()?;
    if topology.mode != TopologyMode::Require {
        return None;
    }
    let domains = placement::domains(slots, Some(topology), view.state).into_iter();
    let rooms = domains.map(|slots| placement::room(&slots, stage, least));
    let most = rooms.max_by_key(|room| (room.total, room.free));
    let (free, total) = most.map_or((0, 0), |room| (room.free, room.total));
    let label = &topology.label;
    Some(format!("all on nodes with one value of {label}: the most that one has are {total}, {free} free"))
}

/// Slots that are free now, with every active attempt holding its own.
fn slots_now(view: &View<'_>) -> Slots {
    let active = view
        .state
        .open_jobs()
        .flat_map(|job| &job.stages)
        .filter_map(Stage::active_shared)
        .cloned()
        .collect();
    free_slots(&view.decide_nodes(), &active)
}

/// Every active attempt.
fn holders<'a>(view: &View<'a>) -> impl Iterator<Item = (&'a Job, &'a Stage, &'a AttemptRecord)> {
    let jobs = view.decide_nodes().in_order();
    jobs.into_iter().flat_map(|job| {
        job.stages.iter().filter_map(move |stage| Some((job, stage, stage.active_attempt()?)))
    })
}

pub(super) fn node_rooms(view: &View<'_>, stage: Option<&StageRef>) -> Vec<NodeRoom> {
    rooms_in(view, &slots_now(view), stage)
}

fn rooms_in(view: &View<'_>, slots: &Slots, stage: Option<&StageRef>) -> Vec<NodeRoom> {
    let nodes = view.decide_nodes();
    let mut rooms: Vec<NodeRoom> = view
        .state
        .nodes()
        .filter(|record| record.kind == NodeKind::Trainer)
        .map(|record| {
            let seen = view.seen.nodes.get(&record.id);
            let silent = seen.is_none_or(|seen| !nodes.is_reachable(seen));
            let heard = seen.map_or(view.seen.since, |seen| seen.last_heard);
            NodeRoom {
                node: record.id.clone(),
                device: record.device.clone(),
                slots: record.slots,
                free: slots.free_on(&record.id, stage),
                draining: record.drained
                    || record.cordon.is_some()
                    || seen.is_some_and(|seen| seen.draining || seen.health.store_fault.is_some()),
                silent_for: silent.then(|| view.now.since(heard)),
            }
        })
        .collect();
    rooms.sort_by(|a, b| b.free.cmp(&a.free).then(a.node.cmp(&b.node)));
    rooms.truncate(MAX_NODES);
    rooms
}

/// The kind of device with most slots, and how many they are.
fn most_of_a_kind<'n>(slots: impl Iterator<Item = (&'n str, u32)>) -> (&'n str, u32) {
    let mut kinds: std::collections::BTreeMap<&str, u32> = std::collections::BTreeMap::new();
    for (device, count) in slots {
        let sum = kinds.entry(device).or_insert(0);
        *sum = sum.saturating_add(count);
    }
    kinds.into_iter().max_by_key(|(device, count)| (*count, *device)).unwrap_or(("", 0))
}

/// `8 slots`, or `8 slots (or 4, its minGpus)`.
fn wanted(sizes: &[u32]) -> String {
    let (most, least) = (sizes.first().copied().unwrap_or(0), sizes.last().copied().unwrap_or(0));
    if most == least {
        count(most, "slot")
    } else {
        format!("{} (or fewer, down to its minGpus {least})", count(most, "slot"))
    }
}

/// The largest gang below `least` that fits now.
fn smaller_gang(slots: &Slots, stage: &StageRef, least: u32) -> Option<u32> {
    // Far above any cluster; a spec may say any number.
    let most = least.min(4096);
    // The larger, the less it fits.
    let too_many = least_that(most as usize, |size| {
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        size > 0 && (size >= most || placement::place(slots, stage, &[size]).is_err())
    });
    u32::try_from(too_many).ok()?.checked_sub(1).filter(|size| *size > 0)
}

/// The least number up to `most` of which `holds` is true, where it is so of all above it and of `most`.
fn least_that(most: usize, holds: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, most);
    while low < high {
        let half = low.midpoint(high);
        if holds(half) { high = half } else { low = half + 1 }
    }
    low
}

/// The jobs that hold slots, those that end soonest first; the ones whose end would be enough are marked. And when that
/// is, at the present pace.
fn blockers(
    view: &View<'_>,
    job: &Job,
    stage: &StageRef,
    slots: &Slots,
    sizes: &[u32],
) -> (Vec<Blocker>, Option<Duration>) {
    let mut holding: Vec<(&Job, &AttemptRecord, Option<Duration>)> = holders(view)
        .filter(|(other, ..)| other.record.id != job.record.id)
        .map(|(other, stage, attempt)| (other, attempt, stage_ends_in(view, other, stage, attempt)))
        .collect();
    // What is not known to end comes last.
    holding.sort_by_key(|(other, _, ends_in)| (ends_in.is_none(), *ends_in, other.order()));
    let fits = |gone: &[usize]| {
        let mut slots = slots.clone();
        for (_, attempt, _) in gone.iter().filter_map(|index| holding.get(*index)) {
            attempt.ranks.iter().for_each(|rank| slots.give_back(rank));
        }
        placement::place(&slots, stage, sizes).is_ok()
    };
    let all: Vec<usize> = (0..holding.len()).collect();
    let mut gone: Vec<usize> = Vec::new();
    if fits(&all) {
        // The more are gone, the more room there is.
        let fewest = least_that(all.len(), |count| fits(all.get(..count).unwrap_or_default()));
        gone.extend(all.into_iter().take(fewest));
        // Who ends last is spared first.
        for index in gone.clone().into_iter().rev() {
            let without: Vec<usize> = gone.iter().copied().filter(|other| *other != index).collect();
            if fits(&without) {
                gone = without;
            }
        }
    }
    let waits: Option<Vec<Duration>> =
        gone.iter().map(|index| holding.get(*index).and_then(|(.., ends_in)| *ends_in)).collect();
    let goes_on_in = waits.and_then(|waits| waits.into_iter().max());
    let found = holding
        .iter()
        .enumerate()
        .map(|(index, (other, attempt, ends_in))| Blocker {
            enough: gone.contains(&index),
            ..blocker(view, other, attempt.ranks.len(), *ends_in)
        })
        .take(MAX_NODES)
        .collect();
    (found, goes_on_in)
}

pub(super) fn blocker(view: &View<'_>, job: &Job, slots: usize, stage_ends_in: Option<Duration>) -> Blocker {
    let after =
        job.current_stage().map_or(0, |index| job.stages.len().saturating_sub(index.saturating_add(1)));
    Blocker {
        job: view.shows(job).then(|| job.record.id.clone()),
        priority: job.record.spec.priority,
        slots: u32::try_from(slots).unwrap_or(u32::MAX),
        stage_ends_in,
        stages_after: after,
        enough: false,
    }
}

fn names(blockers: &[&Blocker]) -> String {
    let known: Vec<String> =
        blockers.iter().filter_map(|blocker| blocker.job.as_ref()).map(ToString::to_string).collect();
    let others = blockers.len() - known.len();
    match (known.len(), others) {
        (_, 0) => known.join(" and "),
        (0, others) => format!("{} of another tenant", count(others, "job")),
        (_, others) => format!("{} and {} of another tenant", known.join(", "), count(others, "job")),
    }
}
