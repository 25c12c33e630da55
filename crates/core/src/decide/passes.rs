//! What the passes of a decision hand to each other.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use crate::holdings::Holdings;
use crate::ids::{JobId, NodeId, StageRef};
use crate::placement::NodeNeeds;
use crate::records::AttemptRecord;
use crate::spec::{DeviceChoice, ModelPreset, Topology};
use crate::state::Job;

/// Active attempts once the plan's writes are made.
pub(crate) type Active = BTreeMap<StageRef, AttemptRecord>;

/// What the pass over the jobs leaves for the others.
pub(super) struct Decided<'a> {
    /// The open jobs, in the order in which they are served.
    pub order: Vec<&'a Job>,
    /// Attempts that are active once the plan's writes are made.
    pub active: Active,
    /// Of those, the ones whose ranks are to save and leave, with the reason.
    pub leaving: BTreeMap<StageRef, String>,
    /// Jobs that have become terminal.
    pub closed: BTreeSet<JobId>,
    /// Tenants that store as much as they may: stored and allowed bytes.
    pub full_tenants: BTreeMap<String, (u64, u64)>,
    /// Stages that wait for pairs, in order.
    pub lacking: Vec<Lacking<'a>>,
}

/// A job whose current stage has no active attempt.
pub(super) struct Idle<'a> {
    pub job: &'a Job,
    pub index: usize,
    /// The attempt before.
    pub last: Option<AttemptRecord>,
}

/// A job for whose sake later ones may have to wait.
#[derive(Clone, Copy)]
pub(super) struct FirstWaiting<'a> {
    pub job: &'a Job,
    /// What it waits for is on its way: nobody takes that.
    pub comes: bool,
}

/// Slots that active attempts hold.
#[derive(Default)]
pub(super) struct InUse<'a> {
    pub tenants: BTreeMap<&'a str, u32>,
    pub queues: Holdings<'a>,
}

/// What jobs have in common that may be given the same nodes.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Asks<'a> {
    pub preset: ModelPreset,
    pub queue: Option<&'a str>,
    pub device: DeviceChoice,
    pub labels: &'a BTreeMap<String, String>,
    pub topology: Option<&'a Topology>,
    pub memory_bytes: u64,
}

/// What is found out for one job and holds for those after it that are like it.
#[derive(Default)]
pub(super) struct Found<'a> {
    pub needs: RefCell<BTreeMap<Asks<'a>, NodeNeeds<'a>>>,
    /// The smallest gangs that fit nowhere, by what they need. As long as slots are only taken, they go on not to fit.
    pub too_large: BTreeMap<(NodeNeeds<'a>, Option<&'a Topology>), u32>,
    /// Stages for which more slots may be free than for others.
    pub stopping: BTreeSet<StageRef>,
}

pub(super) struct Lacking<'a> {
    pub job: &'a Job,
    pub index: usize,
    /// Pairs that training starts with.
    pub needed: u64,
}

/// What each curator that takes work should work on or serve.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct CurationAssignments<'d> {
    /// In order.
    pub wanted: BTreeMap<&'d NodeId, Vec<&'d StageRef>>,
    /// Stages that lack pairs and have a curator.
    pub making: BTreeSet<&'d StageRef>,
}
