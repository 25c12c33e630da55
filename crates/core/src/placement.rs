//! Gangs onto slots: whole or not at all, on as few nodes as can be.
//!
//! A gang stays on one kind of device, since its ranks reduce together. Among the nodes of a kind the fullest pieces are
//! taken first and the last piece goes where it leaves the least over, so that large holes stay for large gangs.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use crate::ids::{Incarnation, NodeId, StageRef};
use crate::queues::Packing;
use crate::quotas::Quotas;
use crate::records::{NodeKind, NodeRecord, RankPlacement};
use crate::sizes::gigabytes;
use crate::spec::{DeviceChoice, JobSpec, ModelPreset, StageSpec, Topology, TopologyMode};
use crate::state::{ClusterState, Job};

/// Names of the kinds of devices, as nodes say them.
const CUDA: &str = "cuda";
const CPU: &str = "cpu";

/// Free slots of the nodes that can be given work now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slots {
    /// By id; shared, since many a question is asked of a part of them, or of what would be.
    nodes: Vec<(NodeId, Arc<NodeSlots>)>,
    packing: Packing,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSlots {
    pub incarnation: Incarnation,
    /// `cpu` or `cuda`.
    pub device: Arc<str>,
    pub total: u32,
    pub free: BTreeSet<u32>,
    /// Stages whose ranks are still being stopped there: their slots are free for a gang of the same stage alone, whose
    /// agent stops the old ranks first.
    pub stopping: BTreeSet<StageRef>,
    /// The same, where it is known which slots they hold: only those are kept from others. A rank that cannot be killed costs
    /// its slot and not its node.
    pub held: BTreeMap<u32, StageRef>,
    /// Slots whose rank was killed and does not die: free for nobody.
    pub stuck: BTreeSet<u32>,
}

impl NodeSlots {
    /// Slots that a gang of `stage` could take, or one of any other.
    fn usable<'a>(&'a self, stage: Option<&'a StageRef>) -> impl Iterator<Item = u32> + 'a {
        let stops = self.stopping.iter().any(|stopping| Some(stopping) != stage);
        let free = self.free.iter().filter(move |_| !stops);
        let free = free.filter(|slot| !self.stuck.contains(slot)).copied();
        free.filter(move |slot| self.held.get(slot).is_none_or(|by| Some(by) == stage))
    }

    /// Ranks are being stopped there.
    fn stops(&self) -> bool {
        !self.stopping.is_empty() || !self.held.is_empty()
    }

    /// How many those are.
    fn usable_count(&self, stage: Option<&StageRef>) -> u32 {
        if self.stopping.is_empty() && self.held.is_empty() && self.stuck.is_empty() {
            return count(self.free.len());
        }
        count(self.usable(stage).count())
    }
}

/// Why a gang was not placed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InsufficientCapacity {
    /// Ranks of the smallest gang that would do.
    pub wanted: u32,
    /// Slots free for it on one kind of device.
    pub free: u32,
    /// Slots of the connected nodes of one kind, used or not.
    pub total: u32,
}

impl InsufficientCapacity {
    /// It would fit if nothing else ran.
    pub fn fits_when_empty(&self) -> bool {
        self.wanted <= self.total
    }
}

impl Slots {
    /// Adds a node, most quickly behind those whose ids come before its own.
    pub fn add(&mut self, node: NodeId, slots: NodeSlots) {
        let last = self.nodes.last().map(|(last, _)| last);
        let at =
            if last < Some(&node) { self.nodes.len() } else { self.place_of(&node).unwrap_or_else(|at| at) };
        self.nodes.insert(at, (node, Arc::new(slots)));
    }

    /// Takes another view of a node that there is.
    pub fn put(&mut self, node: &NodeId, slots: NodeSlots) {
        if let Some(known) = self.get_mut(node) {
            *known = Arc::new(slots);
        }
    }

    fn place_of(&self, node: &NodeId) -> Result<usize, usize> {
        self.nodes.binary_search_by(|(known, _)| known.cmp(node))
    }

    fn get(&self, node: &NodeId) -> Option<&Arc<NodeSlots>> {
        self.nodes.get(self.place_of(node).ok()?).map(|(_, slots)| slots)
    }

    fn get_mut(&mut self, node: &NodeId) -> Option<&mut Arc<NodeSlots>> {
        let at = self.place_of(node).ok()?;
        self.nodes.get_mut(at).map(|(_, slots)| slots)
    }

    fn values(&self) -> impl Iterator<Item = &NodeSlots> {
        self.nodes.iter().map(|(_, slots)| slots.as_ref())
    }

    /// A rank of an active attempt holds this slot.
    pub fn take(&mut self, rank: &RankPlacement) {
        if let Some(node) = self.get_mut(&rank.node) {
            Arc::make_mut(node).free.remove(&rank.device_index);
        }
    }

    /// Its attempt has ended.
    pub fn give_back(&mut self, rank: &RankPlacement) {
        if let Some(node) = self.get_mut(&rank.node)
            && rank.device_index < node.total
        {
            Arc::make_mut(node).free.insert(rank.device_index);
        }
    }

    /// As if everything that is being stopped had stopped. What cannot be killed stays.
    pub fn assume_stopped(&mut self) {
        for (_, node) in self.nodes.iter_mut().filter(|(_, node)| node.stops()) {
            let node = Arc::make_mut(node);
            node.stopping.clear();
            node.held.clear();
        }
    }

    /// Stages with ranks that are being stopped somewhere: for those alone more may be free than for others.
    pub fn stopping(&self) -> BTreeSet<&StageRef> {
        let stopping = self.values().filter(|node| node.stops());
        stopping.flat_map(|node| node.stopping.iter().chain(node.held.values())).collect()
    }

    /// Those of some of the nodes.
    pub fn among(&self, may: impl Fn(&NodeId) -> bool) -> Self {
        Self {
            nodes: self.nodes.iter().filter(|(node, _)| may(node)).cloned().collect(),
            packing: self.packing,
        }
    }

    /// The same, to be filled so.
    #[must_use]
    pub fn with_packing(self, packing: Packing) -> Self {
        Self { packing, ..self }
    }

    pub fn packing(&self) -> Packing {
        self.packing
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    pub fn nodes(&self) -> impl Iterator<Item = &NodeId> {
        self.nodes.iter().map(|(node, _)| node)
    }

    /// Slots of a node that a gang could take: of `stage`, or of any that does not run there yet.
    pub fn free_on(&self, node: &NodeId, stage: Option<&StageRef>) -> u32 {
        self.get(node).map_or(0, |node| node.usable_count(stage))
    }
}

/// Which trainer nodes a job may be given.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeNeeds<'a> {
    /// Of this kind; of any if `None`.
    device: Option<&'a str>,
    labels: &'a BTreeMap<String, String>,
    /// Those that its queue asks for too.
    queue_labels: Option<&'a BTreeMap<String, String>>,
    /// A label that they have, whatever its value.
    domain: Option<&'a str>,
    /// Of each GPU, as far as a node says what it has.
    memory_bytes: u64,
}

impl<'a> NodeNeeds<'a> {
    /// What a job's spec comes to in a cluster. A network of FLUX's size crawls on processors: where there are GPUs, connected
    /// or not, it waits for them. In a queue that counts slots a job is on one kind of device: one that its queue counts if it
    /// can be, and GPUs rather than processors.
    pub fn of(job: &'a Job, quotas: &'a Quotas, state: &'a ClusterState) -> Self {
        let spec = &*job.record.spec;
        let trainers = || state.nodes().filter(|node| node.kind == NodeKind::Trainer);
        let device = match (spec.resources.asked_device(), spec.model.preset) {
            (DeviceChoice::Cuda, _) => Some(CUDA),
            (DeviceChoice::Cpu, _) => Some(CPU),
            (DeviceChoice::Auto, ModelPreset::FluxDev | ModelPreset::FluxSchnell) => {
                trainers().any(|node| node.device == CUDA).then_some(CUDA)
            }
            (DeviceChoice::Auto, ModelPreset::Nano) => None,
        };
        let queue = quotas.queues.of(spec).map(|(_, queue)| queue);
        let queue_labels = queue.map(|queue| &queue.node_labels);
        let required = spec.resources.topology.as_ref().filter(|one| one.mode == TopologyMode::Require);
        let domain = required.map(|topology| topology.label.as_str());
        let memory_bytes = if device == Some(CPU) { 0 } else { job.device_bytes };
        let labels = &spec.resources.node_labels;
        let needs = Self { device, labels, queue_labels, domain, memory_bytes };
        let Some(queue) = queue.filter(|queue| queue.counts_slots() && device.is_none()) else {
            return needs;
        };
        let met = trainers().filter(|node| needs.are_met_by(node)).map(|node| node.device.as_str());
        let device = met.max_by_key(|device| (queue.counts(device), *device));
        Self { device, ..needs }
    }

    /// Kind of device, if only one will do.
    pub fn device(&self) -> Option<&'a str> {
        self.device
    }

    fn labels(&self) -> impl Iterator<Item = (&'a String, &'a String)> {
        self.labels.iter().chain(self.queue_labels.into_iter().flatten())
    }

    pub fn are_met_by(&self, node: &NodeRecord) -> bool {
        let has = |(label, value): (&String, &String)| node.labels.get(label) == Some(value);
        self.device.is_none_or(|device| node.device == device)
            && self.labels().all(has)
            && self.domain.is_none_or(|label| node.labels.contains_key(label))
            && !self.is_too_small(node)
    }

    /// Whether the node says that its GPUs have less memory than a rank needs.
    pub fn is_too_small(&self, node: &NodeRecord) -> bool {
        node.device_memory_bytes.is_some_and(|has| has < self.memory_bytes)
    }

    /// Of each GPU.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// Any trainer node will do.
    pub fn are_none(&self) -> bool {
        self.device.is_none()
            && self.labels().next().is_none()
            && self.domain.is_none()
            && self.memory_bytes == 0
    }
}

/// `device cuda, 41.20 GB of GPU memory, pool=h100`.
impl fmt::Display for NodeNeeds<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let device = self.device.map(|device| format!("device {device}"));
        let labels = self.labels().map(|(label, value)| format!("{label}={value}"));
        let domain = self.domain.map(|label| format!("a label {label}"));
        let counts = self.device == Some(CUDA) && self.memory_bytes > 0;
        let memory = counts.then(|| format!("{} of GPU memory", gigabytes(self.memory_bytes)));
        f.write_str(
            &device.into_iter().chain(memory).chain(labels).chain(domain).collect::<Vec<_>>().join(", "),
        )
    }
}

/// The slots that a gang may be spread over: those of nodes near each other, the fewest free ones first, so that large holes stay
/// for large gangs; then all, unless the gang has to be near.
pub fn domains<'a>(
    slots: &'a Slots,
    topology: Option<&Topology>,
    state: &ClusterState,
) -> Vec<Cow<'a, Slots>> {
    let Some(Topology { label, mode }) = topology else { return vec![Cow::Borrowed(slots)] };
    let value = |node: &NodeId| state.node(node).and_then(|node| node.labels.get(label));
    let values: BTreeSet<&String> = slots.nodes().filter_map(value).collect();
    let near = values.into_iter().map(|wanted| slots.among(|node| value(node) == Some(wanted)));
    let mut domains: Vec<Cow<'_, Slots>> = near.map(Cow::Owned).collect();
    let free = |slots: &Cow<'_, Slots>| slots.values().map(|node| node.free.len()).sum::<usize>();
    domains.sort_by_key(free);
    if *mode == TopologyMode::Prefer {
        domains.push(Cow::Borrowed(slots));
    }
    domains
}

/// Gang sizes that the spec allows for a stage, largest first: from `gpus` down to `minGpus`, with a sample for each rank.
pub fn gang_sizes(spec: &JobSpec, stage: &StageSpec) -> Vec<u32> {
    let (most, least) = (spec.resources.gpus.max(1), spec.resources.min_gpus.max(1));
    (least.min(most)..=most.min(stage.train.global_batch)).rev().collect()
}

/// Places the largest of `sizes` that fits, without taking the slots.
pub fn place(
    slots: &Slots,
    stage: &StageRef,
    sizes: &[u32],
) -> Result<Vec<RankPlacement>, InsufficientCapacity> {
    let open: Vec<Open<'_>> = slots
        .nodes
        .iter()
        .map(|(id, node)| Open { id, node, free: node.usable_count(Some(stage)) })
        .filter(|open| open.free > 0)
        .collect();
    let devices: BTreeSet<&str> = open.iter().map(|open| &*open.node.device).collect();
    // GPUs first where there are any.
    let devices: Vec<&str> = devices.into_iter().rev().collect();
    for &size in sizes {
        for device in &devices {
            let of_kind: Vec<_> = open.iter().filter(|open| &*open.node.device == *device).collect();
            let filled = match slots.packing {
                Packing::Pack => fill(of_kind, stage, size),
                Packing::Spread => spread(of_kind, stage, size),
            };
            if let Some(ranks) = filled {
                return Ok(ranks);
            }
        }
    }
    Err(room(slots, stage, sizes.last().copied().unwrap_or(0)))
}

/// How much room there is for a gang of this size, on the kind of device that has most.
pub fn room(slots: &Slots, stage: &StageRef, wanted: u32) -> InsufficientCapacity {
    let mut by_device: BTreeMap<&str, (u32, u32)> = BTreeMap::new();
    for node in slots.values() {
        let (free, total) = by_device.entry(&node.device).or_default();
        *free = free.saturating_add(node.usable_count(Some(stage)));
        *total = total.saturating_add(node.total.saturating_sub(count(node.stuck.len())));
    }
    InsufficientCapacity {
        wanted,
        free: by_device.values().map(|(free, _)| *free).max().unwrap_or(0),
        total: by_device.values().map(|(_, total)| *total).max().unwrap_or(0),
    }
}

/// A node with the number of slots that a gang could take there; at least one.
struct Open<'a> {
    id: &'a NodeId,
    node: &'a NodeSlots,
    free: u32,
}

impl Open<'_> {
    /// Ranks of a gang of `stage` in the first of its free slots.
    fn ranks<'a>(&'a self, stage: &'a StageRef, wanted: u32) -> impl Iterator<Item = RankPlacement> + 'a {
        self.node.usable(Some(stage)).take(wanted as usize).map(|device_index| RankPlacement {
            node: self.id.clone(),
            incarnation: self.node.incarnation.clone(),
            device_index,
        })
    }
}

fn count(slots: usize) -> u32 {
    u32::try_from(slots).unwrap_or(u32::MAX)
}

fn is_enough(nodes: &[&Open<'_>], size: u32) -> bool {
    size > 0 && nodes.iter().map(|open| u64::from(open.free)).sum::<u64>() >= u64::from(size)
}

/// `nodes` by id.
fn fill(mut nodes: Vec<&Open<'_>>, stage: &StageRef, size: u32) -> Option<Vec<RankPlacement>> {
    if !is_enough(&nodes, size) {
        return None;
    }
    // Stable: by id among those with as many.
    nodes.sort_by_key(|open| open.free);
    let mut ranks = Vec::new();
    let mut missing = size;
    while missing > 0 {
        // Ascending by free slots: the first that takes all the rest leaves the least over; else the first of the largest.
        let most = nodes.last().map(|open| open.free)?;
        let at = nodes.partition_point(|open| open.free < missing.min(most));
        let open = (at < nodes.len()).then(|| nodes.remove(at))?;
        let taken = missing.min(open.free);
        ranks.extend(open.ranks(stage, taken));
        missing -= taken;
    }
    Some(ranks)
}

/// One rank after the other, each on the node that has most slots left. `nodes` by id.
fn spread(nodes: Vec<&Open<'_>>, stage: &StageRef, size: u32) -> Option<Vec<RankPlacement>> {
    if !is_enough(&nodes, size) {
        return None;
    }
    let mut taken: Vec<u32> = vec![0; nodes.len()];
    for _ in 0..size {
        let left =
            |(at, open): &(usize, &&Open<'_>)| open.free.saturating_sub(taken.get(*at).copied().unwrap_or(0));
        let (at, _) = nodes.iter().enumerate().rev().max_by_key(left)?;
        *taken.get_mut(at)? += 1;
    }
    Some(nodes.iter().zip(taken).flat_map(|(open, taken)| open.ranks(stage, taken)).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ids::{JobId, StageName};

    fn stage(name: &str) -> StageRef {
        StageRef { job: JobId::parse("j").expect("valid"), stage: StageName::parse(name).expect("valid") }
    }

    fn slots(free: &[(u32, &str)]) -> Slots {
        let mut slots = Slots::default();
        for (i, (total, device)) in free.iter().enumerate() {
            let node = NodeSlots {
                incarnation: Incarnation::parse("i").expect("valid"),
                device: (*device).into(),
                total: *total,
                free: (0..*total).collect(),
                stopping: BTreeSet::new(),
                held: BTreeMap::new(),
                stuck: BTreeSet::new(),
            };
            slots.add(NodeId::parse(&format!("n{i:02}")).expect("valid"), node);
        }
        slots
    }

    fn nodes_of(ranks: &[RankPlacement]) -> Vec<&str> {
        ranks.iter().map(|rank| rank.node.as_str()).collect()
    }

    #[test]
    fn the_smallest_node_that_takes_the_whole_gang_is_used() {
        let ranks = place(&slots(&[(8, "cpu"), (2, "cpu"), (4, "cpu")]), &stage("s"), &[2]).expect("fits");
        assert_eq!(nodes_of(&ranks), ["n01", "n01"]);
    }

    #[test]
    fn a_gang_spreads_over_as_few_nodes_as_can_be() {
        let ranks = place(&slots(&[(1, "cpu"), (2, "cpu"), (4, "cpu")]), &stage("s"), &[5]).expect("fits");
        assert_eq!(nodes_of(&ranks), ["n02", "n02", "n02", "n02", "n00"]);
    }

    #[test]
    fn a_queue_may_spread_its_gangs() {
        let room = slots(&[(3, "cpu"), (4, "cpu"), (1, "cpu"), (9, "cuda")]).with_packing(Packing::Spread);
        let cpus = room.among(|node| node.as_str() != "n03");
        let ranks = place(&cpus, &stage("s"), &[5]).expect("fits");
        assert_eq!(nodes_of(&ranks), ["n00", "n00", "n01", "n01", "n01"]);
        assert_eq!(place(&cpus, &stage("s"), &[8]).expect("fits").len(), 8);
        assert!(place(&cpus, &stage("s"), &[9]).is_err());
    }

    #[test]
    fn a_gang_does_not_mix_devices() {
        let room = slots(&[(1, "cpu"), (1, "cuda")]);
        let refused = place(&room, &stage("s"), &[2]).expect_err("no room");
        assert_eq!(refused, InsufficientCapacity { wanted: 2, free: 1, total: 1 });
        assert_eq!(nodes_of(&place(&room, &stage("s"), &[1]).expect("fits")), ["n01"]);
    }

    #[test]
    fn a_smaller_gang_is_taken_only_when_allowed() {
        let room = slots(&[(3, "cpu")]);
        assert!(place(&room, &stage("s"), &[4]).is_err());
        assert_eq!(place(&room, &stage("s"), &[4, 2]).expect("fits").len(), 2);
    }

    #[test]
    fn a_rank_that_does_not_end_keeps_its_own_slot_alone() {
        let mut room = slots(&[(3, "cpu")]);
        room.nodes
            .iter_mut()
            .for_each(|(_, node)| Arc::make_mut(node).held = BTreeMap::from([(1, stage("s"))]));
        let ranks = place(&room, &stage("t"), &[2]).expect("two are free");
        assert_eq!(ranks.iter().map(|rank| rank.device_index).collect::<Vec<_>>(), [0, 2]);
        assert!(place(&room, &stage("t"), &[3]).is_err());
        assert!(place(&room, &stage("s"), &[3]).is_ok(), "its own stage's agent ends it first");
    }

    #[test]
    fn a_node_that_still_stops_ranks_takes_only_their_own_stage() {
        let mut room = slots(&[(2, "cpu")]);
        room.nodes
            .iter_mut()
            .for_each(|(_, node)| Arc::make_mut(node).stopping = BTreeSet::from([stage("s")]));
        assert!(place(&room, &stage("t"), &[1]).is_err());
        assert!(place(&room, &stage("s"), &[2]).is_ok());
    }

    proptest! {
        #[test]
        fn a_gang_is_whole_and_no_slot_is_used_twice(
            nodes in prop::collection::vec((0u32..9, prop::bool::ANY), 0..8),
            sizes in prop::collection::vec(1u32..12, 1..8),
        ) {
            let nodes: Vec<_> = nodes.iter().map(|(n, cuda)| (*n, if *cuda { "cuda" } else { "cpu" })).collect();
            let mut room = slots(&nodes);
            let mut used = BTreeSet::new();
            for size in sizes {
                match place(&room, &stage("s"), &[size]) {
                    Ok(ranks) => {
                        prop_assert_eq!(ranks.len(), size as usize);
                        for rank in &ranks {
                            room.take(rank);
                            prop_assert!(used.insert((rank.node.clone(), rank.device_index)), "slot used twice");
                        }
                    }
                    Err(refused) => prop_assert!(refused.free < size, "there was room"),
                }
            }
        }
    }
}
