//! Which pair log a stage reads: its own, or with `source: log` that of another stage.
//!
//! Whoever asks for a stage's pairs in order to train on them, to show them or to say what is missing asks here. A stage that reads
//! another's log has one itself, which is empty and sealed: nothing is made for it.

use crate::ids::StageRef;
use crate::job::JobState;
use crate::pairlog::PairLog;
use crate::records::ShardRecord;
use crate::state::{ClusterState, Job, Stage};

/// The part of a log that a stage reads.
#[derive(Clone, Copy, Debug)]
pub struct ReadLog<'a> {
    /// The stage whose pairs they are.
    pub of: &'a Stage,
    /// Whether that is a stage of another job.
    pub is_elsewhere: bool,
    /// Pairs that are read at most.
    most: u64,
    /// It grows no more, whether it is sealed or not.
    is_over: bool,
}

impl<'a> ReadLog<'a> {
    fn new(job: &'a Job, of: &'a Stage, most: u64, is_elsewhere: bool) -> Self {
        // One that has failed may be tried again, and make more.
        let is_over = matches!(job.record.state, JobState::Succeeded | JobState::Cancelled { .. });
        Self { of, is_elsewhere, most, is_over: is_elsewhere && is_over }
    }

    fn log(&self) -> &'a PairLog {
        &self.of.log
    }

    /// Pairs that can be read, from index 0.
    pub fn committed(&self) -> u64 {
        self.log().committed().min(self.most)
    }

    /// Version of the marks of the log; 0 before the first.
    pub fn marks_version(&self) -> u64 {
        self.of.marks.as_ref().map_or(0, |marks| marks.version())
    }

    /// Units that can be read, those without a pair among them.
    pub fn units(&self) -> u64 {
        self.log().prefix_units()
    }

    /// There will not be more.
    pub fn is_sealed(&self) -> bool {
        self.log().is_sealed() || self.is_over || self.log().committed() >= self.most
    }

    /// Shards from unit `from` on, each with the index of its first pair.
    pub fn shards_from(&self, from: u64) -> impl Iterator<Item = (u64, ShardRecord, u64)> + use<'a> {
        let most = self.most;
        self.log().shards_from(from).take_while(move |(_, _, first_index)| *first_index < most)
    }
}

impl ClusterState {
    /// The log that stage `index` of a job reads; `None` if that is another job's which is not there, or of another tenant.
    pub fn read_log<'a>(&'a self, job: &'a Job, index: usize) -> Option<ReadLog<'a>> {
        let (spec, stage) = (job.stage_spec(index)?, job.stages.get(index)?);
        let Some(log) = spec.data.source.log() else {
            return Some(ReadLog::new(job, stage, u64::MAX, false));
        };
        let most = spec.data.pairs;
        match log.elsewhere() {
            None => job.earlier_log(index).map(|of| ReadLog::new(job, of, most, false)),
            Some(other) => {
                let job =
                    self.job(&other.job).filter(|theirs| theirs.record.spec.tenant == job.record.spec.tenant);
                let job = job?;
                let of = job.stages.iter().find(|stage| stage.id == other)?;
                Some(ReadLog::new(job, of, most, true))
            }
        }
    }

    /// The log that a stage reads, by the stage.
    pub fn read_log_of(&self, stage: &StageRef) -> Option<ReadLog<'_>> {
        let job = self.job(&stage.job)?;
        self.read_log(job, job.stage_index(stage.stage.as_str())?)
    }
}

impl Job {
    /// The stage of this job in whose log the pairs of stage `index` are made; `None` if they are another job's.
    pub fn making_stage(&self, index: usize) -> Option<&Stage> {
        match self.stage_spec(index)?.data.source.log() {
            None => self.stages.get(index),
            Some(_) => self.earlier_log(index),
        }
    }

    /// Whether the pairs that stage `index` is trained on are made for it.
    pub fn makes_pairs(&self, index: usize) -> bool {
        self.stage_spec(index).is_some_and(|spec| spec.data.source.log().is_none())
    }

    fn earlier_log(&self, index: usize) -> Option<&Stage> {
        let from = self.stage_spec(index)?.data.source.log()?.earlier()?;
        self.stages.get(self.stage_index(from)?)
    }
}
