//! Which curator makes and serves which stages.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::decide::passes::Decided;
use crate::decide::{DecideContext, curator_shares, stage_precision};
use crate::ids::{IdMap, IdSet, NodeId, StageRef};
use crate::observed::NodeView;
use crate::records::NodeRecord;
use crate::state::{ClusterState, Job, Stage};

/// How long a stage counts as held up after its curator last said that it waits for something outside.
const HELD_UP_FOR: Duration = Duration::from_secs(300);
/// Stages that one curator waits with, while it makes another. Each holds a few units in its memory.
const MAX_HELD_UP: usize = 3;

/// A curator that may be given work.
pub(super) type OpenCurator<'a> = (&'a NodeRecord, &'a NodeView);

/// Who makes which stages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Made {
    /// What each curator works on beside what it serves, in order; by their places among those that may be given work.
    pub by_curator: Vec<Vec<StageRef>>,
    /// Stages that lack pairs and have a curator.
    pub stages: IdSet<StageRef>,
}

/// The curators are divided among the tenants of the stages in `make`; of these, each gets at least one, in order, as far as its
/// tenant's curators go. A curator stays where it is as long as no stage would be left without, and makes none whose
/// source it cannot open. A curator that waits with a stage for something outside, such as an endpoint, goes on waiting
/// and makes another beside it.
pub(super) fn spread<'d>(
    nodes: &DecideContext<'_>,
    curators: &[OpenCurator<'d>],
    mut make: Vec<(&'d StageRef, &'d str)>,
) -> Made {
    if curators.is_empty() {
        return Made::default();
    }
    let held_up = held_up(nodes, curators, &make);
    let waited_with: BTreeSet<&StageRef> = held_up.values().flatten().copied().collect();
    make.retain(|(stage, _)| !waited_with.contains(stage));
    let shared = share(nodes, make, curators.len());
    let mut making = Making::new(nodes, &shared);
    making.keep(curators);
    for (record, _) in curators {
        if making.chosen.contains_key(&record.id)
            || making.take(&record.id)
            || held_up.contains_key(&record.id)
        {
            continue;
        }
        // What holds others up may not concern this one.
        let able = waited_with.iter().copied().filter(|stage| nodes.may_make(stage, &record.id));
        making.chosen.extend(able.min().map(|stage| (&record.id, stage)));
    }
    making.leave_none_without();
    let Making { chosen, makers, .. } = making;
    let made = makers.into_iter().filter(|(_, n)| *n > 0).map(|(stage, _)| stage);
    let of_curator = |(record, view): &OpenCurator<'d>| {
        let more = chosen.get(&record.id).into_iter().chain(held_up.get(&record.id).into_iter().flatten());
        let mut stages: BTreeSet<&StageRef> = more.copied().collect();
        // The ranks of a job that is halted go on, and its pairs are served to them by whoever does.
        if !nodes.state.unreadable().is_empty() {
            stages.extend(view.curating.iter().filter(|stage| nodes.is_halted(&stage.job)));
        }
        stages.into_iter().cloned().collect()
    };
    Made {
        by_curator: curators.iter().map(of_curator).collect(),
        stages: made.chain(waited_with.iter().copied()).cloned().collect(),
    }
}

/// Stages that are made, and how many curators may make them.
struct Shared<'a> {
    /// In the order of their jobs: of each tenant as many as it has curators at most.
    stages: Vec<&'a StageRef>,
    tenants: IdMap<&'a StageRef, &'a str>,
    /// Curators of each tenant.
    shares: BTreeMap<&'a str, usize>,
    /// Curators of each stage, until every stage of its tenant has one.
    quotas: BTreeMap<&'a str, usize>,
}

fn share<'a>(nodes: &DecideContext<'_>, make: Vec<(&'a StageRef, &'a str)>, curators: usize) -> Shared<'a> {
    let (mut tenants, mut known) = (Vec::new(), BTreeSet::new());
    for (_, tenant) in &make {
        if known.insert(*tenant) {
            let most = nodes.limits.quotas.of(tenant).max_curators;
            tenants.push((*tenant, most.map(|most| most as usize)));
        }
    }
    let shares = curator_shares::divide(&tenants, curators);
    let (mut stages, mut tenants, mut kept) = (Vec::new(), IdMap::default(), BTreeMap::new());
    for (stage, tenant) in make {
        let count = kept.entry(tenant).or_insert(0usize);
        if *count < shares.get(tenant).copied().unwrap_or(0) {
            *count += 1;
            stages.push(stage);
            tenants.insert(stage, tenant);
        }
    }
    let quota = |(tenant, count): (&'a str, usize)| {
        (tenant, shares.get(tenant).copied().unwrap_or(0).div_ceil(count.max(1)))
    };
    let quotas = kept.into_iter().map(quota).collect();
    Shared { stages, tenants, shares, quotas }
}

/// Who makes what, as far as it is decided.
struct Making<'s, 'n, 'a> {
    nodes: &'s DecideContext<'n>,
    shared: &'s Shared<'a>,
    /// Curators of each stage, and of each tenant.
    makers: IdMap<&'a StageRef, usize>,
    of_tenants: BTreeMap<&'a str, usize>,
    chosen: BTreeMap<&'a NodeId, &'a StageRef>,
}

impl<'s, 'n, 'a> Making<'s, 'n, 'a> {
    fn new(nodes: &'s DecideContext<'n>, shared: &'s Shared<'a>) -> Self {
        let makers = shared.stages.iter().map(|stage| (*stage, 0)).collect();
        Self { nodes, shared, makers, of_tenants: BTreeMap::new(), chosen: BTreeMap::new() }
    }

    fn makers(&self, stage: &StageRef) -> usize {
        self.makers.get(stage).copied().unwrap_or(0)
    }

    fn tenant(&self, stage: &StageRef) -> &'a str {
        self.shared.tenants.get(stage).copied().unwrap_or_default()
    }

    fn curators_of(&self, tenant: &str) -> usize {
        self.of_tenants.get(tenant).copied().unwrap_or(0)
    }

    /// Whether the stage's tenant has a curator left.
    fn has_room(&self, tenant: &str) -> bool {
        self.curators_of(tenant) < self.shared.shares.get(tenant).copied().unwrap_or(0)
    }

    fn choose(&mut self, node: &'a NodeId, stage: &'a StageRef) {
        *self.makers.entry(stage).or_insert(0) += 1;
        *self.of_tenants.entry(self.tenant(stage)).or_insert(0) += 1;
        self.chosen.insert(node, stage);
    }

    /// Takes a curator from what it was to make.
    fn take_from(&mut self, stage: &'a StageRef) {
        self.makers.entry(stage).and_modify(|n| *n -= 1);
        self.of_tenants.entry(self.tenant(stage)).and_modify(|n| *n -= 1);
    }

    /// Lets curators go on with what they make.
    fn keep(&mut self, curators: &[OpenCurator<'a>]) {
        let places: IdMap<&StageRef, usize> = self.shared.stages.iter().copied().zip(0..).collect();
        for (record, view) in curators {
            let mut making: Vec<usize> =
                view.curating.iter().filter_map(|stage| places.get(stage).copied()).collect();
            making.sort_unstable();
            let stays = making.into_iter().filter_map(|at| self.shared.stages.get(at)).find(|stage| {
                let tenant = self.tenant(stage);
                let quota = self.shared.quotas.get(tenant).copied().unwrap_or(0);
                self.nodes.may_make(stage, &record.id) && self.makers(stage) < quota && self.has_room(tenant)
            });
            if let Some(stage) = stays {
                self.choose(&record.id, stage);
            }
        }
    }

    /// Gives a curator the first in order among those with the fewest; false if there is none for it. A tenant gets
    /// more than its share where the others' stages are none that the curator can make, and less than its limit all the
    /// same.
    fn take(&mut self, node: &'a NodeId) -> bool {
        let can = self.shared.stages.iter().copied().filter(|stage| self.nodes.may_make(stage, node));
        let can: Vec<&'a StageRef> = can.collect();
        let room = can.iter().filter(|stage| self.has_room(self.tenant(stage)));
        let spare = || can.iter().filter(|stage| self.is_below_limit(self.tenant(stage)));
        let fewest = |stage: &&&StageRef| self.makers(stage);
        let stage = room.min_by_key(fewest).or_else(|| spare().min_by_key(fewest)).copied();
        if let Some(stage) = stage {
            self.choose(node, stage);
        }
        stage.is_some()
    }

    fn is_below_limit(&self, tenant: &str) -> bool {
        let most = self.nodes.limits.quotas.of(tenant).max_curators;
        most.is_none_or(|most| self.curators_of(tenant) < most as usize)
    }

    /// A stage that is left without a curator, because those that remained cannot open its source, gets one that can:
    /// of a stage that has another, or else of the last in order behind it.
    fn leave_none_without(&mut self) {
        let place: BTreeMap<&StageRef, usize> = self.shared.stages.iter().copied().zip(0..).collect();
        for (index, stage) in self.shared.stages.iter().copied().enumerate() {
            let tenant = self.tenant(stage);
            if self.makers(stage) > 0 {
                continue;
            }
            let spare = |from: &&StageRef| {
                let (others, at) = (self.makers(from) > 1, place.get(from).copied()?);
                let may = self.tenant(from) == tenant || self.is_below_limit(tenant);
                (may && (others || at > index)).then_some((others, at))
            };
            let able = self.chosen.iter().filter(|(node, _)| self.nodes.may_make(stage, node));
            let taken = able.filter_map(|(node, from)| Some((spare(from)?, *node, *from))).max();
            if let Some((_, node, from)) = taken {
                self.take_from(from);
                self.choose(node, stage);
            }
        }
    }
}

/// The stage of the job that lacks pairs, may be begun and is not trained yet. One that trains while it still lacks pairs has
/// every curator already.
pub(super) fn wanted_of<'a>(
    nodes: &DecideContext<'_>,
    job: &'a Job,
    decided: &Decided,
) -> Option<&'a StageRef> {
    let stage = stage_to_make(job)?;
    let begins = may_begin(job, stage, decided) && !stage_precision::is_open(nodes, job, stage);
    let is_open = !decided.closed.contains(&job.record.id) && !nodes.is_halted(&job.record.id);
    (begins && is_open && !decided.active.contains(&stage.id)).then_some(&stage.id)
}

/// The stages in `make` with which a curator waits, by the curators that make them: these keep them, and have time for another.
fn held_up<'a>(
    nodes: &DecideContext<'_>,
    curators: &[OpenCurator<'a>],
    make: &[(&'a StageRef, &str)],
) -> BTreeMap<&'a NodeId, Vec<&'a StageRef>> {
    let mut held_up: BTreeMap<&NodeId, Vec<&StageRef>> = BTreeMap::new();
    let make = make.iter().map(|(stage, _)| *stage);
    for stage in make.filter(|stage| nodes.seen.under_way.was_waited_with(stage)) {
        let makers: Vec<&NodeId> = curators
            .iter()
            .filter(|(record, view)| view.curating.contains(stage) && nodes.may_make(stage, &record.id))
            .map(|(record, _)| &record.id)
            .collect();
        let waits = |node: &&NodeId| nodes.seen.under_way.has_waited(stage, node, HELD_UP_FOR, nodes.now);
        let has_room = |node: &&NodeId| held_up.get(*node).is_none_or(|stages| stages.len() < MAX_HELD_UP);
        if makers.iter().any(waits) && makers.iter().all(has_room) {
            for node in makers {
                held_up.entry(node).or_default().push(stage);
            }
        }
    }
    held_up
}

/// Units that open jobs would still need if no pair of them were rejected, of the stages that can be curated now.
pub fn curation_backlog_units(state: &ClusterState) -> u64 {
    let lacking = |job: &Job| {
        let data = &job.stage_spec(job.facts().makes?)?.data;
        let pairs = data.pairs.saturating_sub(stage_to_make(job)?.log.committed());
        Some(pairs.div_ceil(u64::from(data.unit_size).max(1)))
    };
    state.open_jobs().filter_map(lacking).sum()
}

/// A tenant that stores as much as it may begins no further stage.
fn may_begin(job: &Job, stage: &Stage, decided: &Decided) -> bool {
    !decided.full_tenants.contains_key(&job.record.spec.tenant) || stage.is_begun()
}

fn stage_to_make(job: &Job) -> Option<&Stage> {
    job.stages.get(job.facts().makes?)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::decide::servers::Servers;
    use crate::decide::{Limits, curators_of};
    use crate::ids::{Generation, Incarnation, JobId, RequestId, Timestamp};
    use crate::job::{JobState, Pause};
    use crate::observed::Observed;
    use crate::pairlog::tests::done;
    use crate::records::{CheckpointRecord, JobRecord, NodeKind, Record, Write};
    use crate::spec;

    const SPEC: &str = "
apiVersion: crescendo/v1
kind: TrainingJob
metadata: {name: uno}
spec:
  model: {preset: nano, weights: base.safetensors, precision: f32}
  stages:
    - data: {source: compose, subjects: lib, pairs: 8}
    - {references: 2, data: {source: SOURCE, subjects: lib, pairs: 8}}
    - {references: 2, data: {source: compose, subjects: lib, pairs: 8}}
";

    fn state(source: &str) -> (ClusterState, JobId) {
        let id = JobId::parse("j").expect("valid");
        let spec = spec::parse(SPEC.replace("SOURCE", source).as_bytes()).expect("the spec is right");
        let record = JobRecord {
            id: id.clone(),
            request: RequestId::parse("r").expect("valid"),
            spec: Arc::new(spec),
            spec_json: Arc::from(&b"{}"[..]),
            state: JobState::Running { stage: 0 },
            submitted_at: Timestamp(0),
            trace: None,
            started_at: None,
            finished_at: None,
        };
        let (state, orphans) = ClusterState::load(vec![Record::Job(record)]);
        assert!(orphans.is_empty());
        (state, id)
    }

    fn stage(state: &ClusterState, id: &JobId, index: usize) -> StageRef {
        state.job(id).expect("it is there").stages[index].id.clone()
    }

    /// All pairs of a stage.
    fn seal(state: &mut ClusterState, id: &JobId, index: usize) {
        let unit = crate::records::UnitRecord { stage: stage(state, id, index), ..done(0, 8, false) };
        state.apply(Write::Put(Record::Unit(unit))).expect("the stage is there");
    }

    fn finish(state: &mut ClusterState, id: &JobId, index: usize, damaged: Option<String>) {
        let checkpoint = CheckpointRecord {
            stage: stage(state, id, index),
            generation: Generation(1),
            step: 10,
            path: "c".into(),
            files: Vec::new(),
            committed_at: Timestamp(0),
            is_final: true,
            damaged,
            next_position: 0,
        };
        state.apply(Write::Put(Record::Checkpoint(checkpoint))).expect("the stage is there");
    }

    fn made(state: &ClusterState, id: &JobId) -> Option<String> {
        stage_to_make(state.job(id).expect("it is there")).map(|stage| stage.id.stage.to_string())
    }

    #[test]
    fn the_backlog_is_what_the_stage_to_make_lacks() {
        let (mut state, id) = state("compose");
        let unit_size =
            u64::from(state.job(&id).expect("there").stage_spec(0).expect("there").data.unit_size);
        let all = 8u64.div_ceil(unit_size);
        assert_eq!(curation_backlog_units(&state), all, "of the first stage alone");
        let unit = crate::records::UnitRecord { stage: stage(&state, &id, 0), ..done(0, 7, false) };
        state.apply(Write::Put(Record::Unit(unit))).expect("the stage is there");
        assert_eq!(curation_backlog_units(&state), 1);
        let mut record = state.job(&id).expect("there").record.clone();
        for (curates, units) in [(false, 0), (true, 1)] {
            record.state = JobState::Paused(Pause { curates, reason: String::new() });
            state.apply(Write::Put(Record::Job(record.clone()))).expect("a job stands alone");
            assert_eq!(curation_backlog_units(&state), units, "a paused job curates: {curates}");
        }
    }

    #[test]
    fn a_stage_that_draws_with_an_earlier_ones_model_waits_for_its_checkpoint() {
        for (source, early) in [("compose", true), ("crop", true), ("recompose", false)] {
            let (mut state, id) = state(source);
            assert_eq!(made(&state, &id).as_deref(), Some("stage-1"), "{source}");
            seal(&mut state, &id, 0);
            let expected = early.then_some("stage-2");
            assert_eq!(made(&state, &id).as_deref(), expected, "{source} while stage-1 trains");
            assert_eq!(state.job(&id).expect("there").source_checkpoint(1).is_ok(), early);
            finish(&mut state, &id, 0, None);
            assert_eq!(made(&state, &id).as_deref(), Some("stage-2"), "{source} when it is trained");
            seal(&mut state, &id, 1);
            assert_eq!(made(&state, &id).as_deref(), Some("stage-3"), "{source}");
            // With the checkpoint lost stage-1 is trained once more, and nothing is drawn with what is not there.
            finish(&mut state, &id, 0, Some("torn".into()));
            assert_eq!(made(&state, &id), None, "{source}");
        }
    }

    #[test]
    fn rate_limits_are_divided_among_those_who_make_pairs_of_the_job() {
        let (mut state, id) = state("compose");
        let (mut seen, limits, now) = (Observed::new(Timestamp(0)), Limits::default(), Timestamp(5));
        assert_eq!(curators_of(&state, &seen, &limits, &id, now), 1, "whoever asks is one");
        let made = stage(&state, &id, 0);
        for (name, stages) in [("c-1", vec![made.clone()]), ("c-2", vec![made.clone()]), ("c-3", vec![])] {
            let (node, incarnation) =
                (NodeId::parse(name).expect("valid"), Incarnation::parse("i").expect("valid"));
            let record = NodeRecord {
                id: node.clone(),
                incarnation: incarnation.clone(),
                kind: NodeKind::Curator,
                slots: 0,
                device: "cpu".into(),
                address: "h:1".into(),
                labels: BTreeMap::new(),
                version: String::new(),
                drained: false,
                cordon: None,
                arithmetic: None,
                device_memory_bytes: None,
            };
            state.apply(Write::Put(Record::Node(record))).expect("a node needs nothing else");
            seen.hello(node, incarnation, BTreeSet::new(), stages.into_iter().collect(), now);
        }
        assert_eq!(curators_of(&state, &seen, &limits, &id, now), 2);
        let other = JobId::parse("other").expect("valid");
        assert_eq!(curators_of(&state, &seen, &limits, &other, now), 1);
        assert_eq!(
            curators_of(&state, &seen, &limits, &id, now.plus(limits.silent_after)),
            1,
            "all are silent"
        );
        seal(&mut state, &id, 0);
        assert_eq!(curators_of(&state, &seen, &limits, &id, now), 1, "what is sealed is only served");
    }

    #[test]
    fn a_complete_log_has_few_servers_and_one_curator_less_moves_one_at_most() {
        let (state, id) = state("compose");
        let stage = stage(&state, &id, 0);
        let names: Vec<NodeId> =
            (0..60).map(|n| NodeId::parse(&format!("c{n:02}")).expect("valid")).collect();
        let all: Vec<&NodeId> = names.iter().collect();
        let chosen = |complete: bool, curators: &[&NodeId]| -> Vec<NodeId> {
            let chosen = Servers::new(curators.iter().copied()).choose(&stage, complete);
            chosen.into_iter().map(|at| curators[at].clone()).collect()
        };
        assert_eq!(chosen(false, &all), names, "all make it");
        let most = crate::decide::servers::MOST_SERVERS;
        assert_eq!(chosen(true, &all[..most]), names[..most], "there are no more");
        let before = chosen(true, &all);
        assert!(before.len() == most && before.is_sorted(), "{before:?}");
        for gone in &names {
            let others: Vec<&NodeId> = all.iter().copied().filter(|node| *node != gone).collect();
            let after = chosen(true, &others);
            assert_eq!(after.len(), most);
            let stay = before.iter().filter(|node| after.contains(node)).count();
            assert_eq!(stay, most - usize::from(before.contains(gone)), "{gone} has gone");
        }
    }
}
