//! Records that are in the store and that this version cannot read: a newer one wrote them, or something broke them.
//!
//! They are kept as they are, and nothing is written over them. What they belong to is halted; everything else goes on.

use std::collections::BTreeMap;
use std::fmt;

use crate::error::RequestError;
use crate::ids::{JobId, NodeId};
use crate::records::RecordKey;

/// The kinds of records, by the first part of their key; what has another is of a kind that this version does not know.
pub const KINDS: [&str; 15] = [
    "jobs",
    "requests",
    "stages",
    "attempts",
    "segments",
    "units",
    "checkpoints",
    "nodes",
    "deletions",
    "keeps",
    "usage",
    "notices",
    "marks",
    "notes",
    "other",
];

/// Whether the key is that of a record of a kind that this version does not have: none of its own is ever written there.
pub fn is_of_another_kind(key: &str) -> bool {
    kind_of(key) == "other" && key != RecordKey::Cluster.to_string()
}

/// All of them, by key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnreadableRecords {
    /// Why each cannot be read.
    reasons: BTreeMap<String, String>,
    /// The first key of each job that has some, and how many it has.
    jobs: BTreeMap<JobId, (String, usize)>,
}

/// What keeps a job from going on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnreadableRecord {
    pub key: String,
    pub why: String,
    /// Records of the same job that cannot be read either.
    pub others: usize,
}

impl fmt::Display for UnreadableRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "its record {} cannot be read: {}", self.key, self.why)?;
        match self.others {
            0 => Ok(()),
            1 => f.write_str(" (and one more)"),
            others => write!(f, " (and {others} more)"),
        }
    }
}

impl UnreadableRecords {
    /// Takes note of the record at `key`. The first one is remembered as what halts its job.
    pub fn add(&mut self, key: String, why: String) {
        if let Some(job) = job_of(&key) {
            self.jobs.entry(job).or_insert_with(|| (key.clone(), 0)).1 += 1;
        }
        self.reasons.insert(key, why);
    }

    pub fn is_empty(&self) -> bool {
        self.reasons.is_empty()
    }

    /// Whether what lies at `key` must not be written over.
    pub fn contains(&self, key: &str) -> bool {
        self.reasons.contains_key(key)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.reasons.iter().map(|(key, why)| (key.as_str(), why.as_str()))
    }

    /// The first record of the job that cannot be read.
    pub fn of_job(&self, job: &JobId) -> Option<UnreadableRecord> {
        let (key, count) = self.jobs.get(job)?;
        let why = self.reasons.get(key)?;
        Some(UnreadableRecord { key: key.clone(), why: why.clone(), others: count.saturating_sub(1) })
    }

    /// Whether the job's own record is one of them.
    pub fn hides_job(&self, job: &JobId) -> bool {
        // Asked of every job, and hardly ever so.
        !self.is_empty() && self.contains(&format!("jobs/{job}"))
    }

    /// How many there are of each of [`KINDS`].
    pub fn counts(&self) -> BTreeMap<&'static str, usize> {
        let mut counts: BTreeMap<&'static str, usize> = KINDS.iter().map(|kind| (*kind, 0)).collect();
        self.reasons.keys().for_each(|key| *counts.entry(kind_of(key)).or_insert(0) += 1);
        counts
    }

    /// Refuses what would need the record at `key`.
    pub fn check(&self, key: &str) -> Result<(), RequestError> {
        match self.reasons.get(key) {
            Some(why) => {
                Err(RequestError::Unserved { what: format!("the record {key} cannot be read: {why}") })
            }
            None => Ok(()),
        }
    }

    /// Refuses what would need all records of the job.
    pub fn check_job(&self, job: &JobId) -> Result<(), RequestError> {
        match self.of_job(job) {
            Some(record) => Err(RequestError::Unserved { what: format!("job {job} is halted: {record}") }),
            None => Ok(()),
        }
    }

    /// Refuses the session of a node whose record would be written over.
    pub fn check_node(&self, node: &NodeId) -> Result<(), RequestError> {
        self.check(&format!("nodes/{node}"))
    }
}

fn kind_of(key: &str) -> &'static str {
    let first = key.split('/').next().unwrap_or_default();
    KINDS.into_iter().find(|kind| *kind == first).unwrap_or("other")
}

/// The job that the record at `key` belongs to, as far as the key says so.
fn job_of(key: &str) -> Option<JobId> {
    let mut parts = key.split('/');
    match parts.next()? {
        "jobs" | "stages" | "attempts" | "segments" | "units" | "checkpoints" | "deletions" | "keeps"
        | "notices" => JobId::parse(parts.next()?).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_record_is_known_by_its_key() {
        assert!(is_of_another_kind("favourites/j") && is_of_another_kind("job/j"));
        let own = ["cluster", "jobs/j", "notes/j", "usage/t", "units/j/stage-1/000000000003"];
        assert!(!own.into_iter().any(is_of_another_kind));
    }

    #[test]
    fn a_record_halts_the_job_that_its_key_names_and_is_counted() {
        let mut records = UnreadableRecords::default();
        records.add("units/j/stage-1/000000000003".into(), "broken".into());
        records.add("attempts/j/stage-1".into(), "broken".into());
        records.add("nodes/n".into(), "broken".into());
        records.add("tenants/x".into(), "new".into());
        let job = JobId::parse("j").expect("valid");
        let told = records.of_job(&job).expect("halted").to_string();
        assert_eq!(told, "its record units/j/stage-1/000000000003 cannot be read: broken (and one more)");
        assert!(!records.hides_job(&job), "its own record is read");
        assert_eq!(records.of_job(&JobId::parse("k").expect("valid")), None);
        let counts: Vec<_> = records.counts().into_iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(counts, [("attempts", 1), ("nodes", 1), ("other", 1), ("units", 1)]);
        assert!(records.check_node(&NodeId::parse("n").expect("valid")).is_err());
    }
}
