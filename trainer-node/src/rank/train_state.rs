//! Where training stood, as its checkpoint says, and which checkpoints may go. The files are [`crescendo_dataset::checkpoint`].

use crescendo_core::marks::LeftOut;
use crescendo_core::object_keys;
use crescendo_dataset::checkpoint::ManifestFile;
use crescendo_proto::v1::{Checkpoint, CheckpointFile};
use serde::{Deserialize, Serialize};

use super::positions::ReplayPass;

/// Where training stood.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrainState {
    pub stage: String,
    pub stage_index: u32,
    pub seed: u64,
    /// Generation of the attempt that wrote it.
    pub generation: u64,
    /// Steps done.
    pub step: u64,
    /// First position of the global order that is not trained yet.
    pub next_position: u64,
    /// Updates that the optimizer has made; what its bias correction counts with.
    pub optimizer_steps: u64,
    /// Replay passes in the global order so far (`onStarvation: repeat`); with `next_position`, where in the log training stood.
    #[serde(default, alias = "laps", skip_serializing_if = "Vec::is_empty")]
    pub replay_passes: Vec<ReplayPass>,
    /// From which epoch on which marked pairs are left out, and by which version of the marks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<LeftOut>,
}

/// A file as it is registered.
pub fn to_wire(file: &ManifestFile) -> CheckpointFile {
    let ManifestFile { name, size_bytes, sha256 } = file.clone();
    CheckpointFile { name, size_bytes, sha256 }
}

/// Folders among `expired` that the writer may delete: of its own stage, and not the checkpoint just committed.
pub fn deletable<'a>(expired: &'a [Checkpoint], committed: &Checkpoint) -> Vec<&'a Checkpoint> {
    let Checkpoint { job_id, stage, path, .. } = committed;
    let own =
        |old: &&Checkpoint| old.path != *path && object_keys::is_checkpoint_of(&old.path, job_id, stage);
    expired.iter().filter(own).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replay_passes_are_read_by_their_old_name_too() {
        let state = |name: &str| {
            let text = format!(
                r#"{{"stage": "s", "stageIndex": 0, "seed": 1, "generation": 1, "step": 4, "nextPosition": 16, "optimizerSteps": 4, "{name}": [{{"from": 4, "pairs": 4}}]}}"#
            );
            serde_json::from_str::<TrainState>(&text).map(|state| state.replay_passes.len())
        };
        assert_eq!((state("replayPasses").ok(), state("laps").ok()), (Some(1), Some(1)));
        assert!(state("rounds").is_err());
    }

    #[test]
    fn only_the_stages_own_folders_are_deleted() {
        let checkpoint = |path: &str| Checkpoint {
            job_id: "job".into(),
            stage: "one".into(),
            path: path.into(),
            ..Checkpoint::default()
        };
        let committed = checkpoint("jobs/job/one/checkpoints/step-00000004-g1");
        let expired = [
            "jobs/job/one/checkpoints/step-00000002-g1",
            "jobs/job/one/checkpoints/step-00000004-g1",
            "jobs/job/two/checkpoints/step-00000002-g1",
            "jobs/job/one/checkpoints/../../two",
            "jobs/job/one/checkpoints/",
            "jobs/job/one/checkpoints/a/b",
        ]
        .map(checkpoint);
        let paths: Vec<_> = deletable(&expired, &committed).iter().map(|old| old.path.as_str()).collect();
        assert_eq!(paths, ["jobs/job/one/checkpoints/step-00000002-g1"]);
    }
}
