//! Keys of the cluster's object store, each made in one place: who writes an object, who reads it and who collects it call the same
//! function. Only the last part of a key has a dot, so that no object is the folder of another.
//!
//! | key | what it is |
//! |---|---|
//! | `jobs/JOB/STAGE/pairs/unit-N-lLEASE.tar` | a shard of the pair log |
//! | `jobs/JOB/STAGE/rejected/unit-N.tar` | candidates of a unit that were turned down, for people |
//! | `jobs/JOB/STAGE/checkpoints/step-STEP-gGENERATION/FILE` | a checkpoint, registered by the controller |
//! | `jobs/JOB/STAGE/checkpoints/step-STEP-gGENERATION-rRANK/FILE` | one that another rank than 0 has saved, since 0 was lost |
//! | `jobs/JOB/STAGE/samples/step-STEP-gGENERATION-ID.tar` | pictures that were drawn with that checkpoint, as a shard; one key a try |
//! | `jobs/JOB/STAGE/tensorboard/events.out.tfevents.NUMBER…` | the stage's curve, for TensorBoard |
//! | `jobs/JOB/STAGE/tensorboard/samples/events.out.tfevents.STEP…` | samples of a step, for TensorBoard |
//! | `jobs/JOB/logs/TIME-NODE-ID.jsonl` | lines that a node's process has logged of the job |
//! | `jobs/JOB/endpoints/ENDPOINT/spent/ID.json` | what a curator spent at an endpoint |
//! | `tenants/TENANT/…` | what a tenant brings of its own; nothing here writes it |
//! | `endpoint/replies/of-MODEL/HH/HASH.json` | a language model's answer, for all jobs |
//! | `prompts/of-MODEL/HASH.json` | prompts that a language model wrote, for all jobs |
//! | `endpoint/replies/HH/HASH.json`, `prompts/HASH.json` | the same, from before they were kept by model |
//! | `crescendo.store` | the root's mark: which cluster's store it is |
//! | `probes/ID.probe` | made and deleted by who wants to know what the store can do |

/// Which cluster's store it is. Made by whoever uses the root first.
pub const MARK: &str = "crescendo.store";

/// Folder of what all jobs write.
pub const JOBS: &str = "jobs";

/// What a job writes lies below this.
pub fn job(job: &str) -> String {
    format!("{JOBS}/{job}")
}

/// The job that has written what lies at a key.
pub fn job_of(key: &str) -> Option<&str> {
    key.strip_prefix("jobs/")?.split('/').next().filter(|job| is_plain(job))
}

/// What a tenant may read besides its jobs' files, unless the operator says otherwise.
pub fn tenant(tenant: &str) -> String {
    format!("tenants/{tenant}")
}

/// Shard that the holder of a unit's lease writes: one key a lease, so that no two writers ever share one.
pub fn shard(job: &str, stage: &str, unit: u64, lease_generation: u64) -> String {
    format!("{}/unit-{unit:06}-l{lease_generation}.tar", shards(job, stage))
}

/// Folder of a stage's shards. What lies there need not be in the log: a lease that was lost may have written its shard.
pub fn shards(job: &str, stage: &str) -> String {
    format!("jobs/{job}/{stage}/pairs")
}

/// The unit whose shard, or whose rejected candidates, lie at a key.
pub fn unit_of(key: &str) -> Option<u64> {
    let name = key.rsplit('/').next()?.strip_prefix("unit-")?.strip_suffix(".tar")?;
    name.split_once("-l").map_or(name, |(unit, _)| unit).parse().ok()
}

/// The rejected candidates of a unit that are kept for people to see.
pub fn rejected_sample(job: &str, stage: &str, unit: u64) -> String {
    format!("{}/unit-{unit:06}.tar", rejected_samples(job, stage))
}

/// Folder of a stage's [`rejected_sample`]s.
pub fn rejected_samples(job: &str, stage: &str) -> String {
    format!("jobs/{job}/{stage}/rejected")
}

/// Pictures that were drawn with a checkpoint, or at step 0 with what the stage begins with.
/// `id` is of one try to draw them, so that no two write the same object.
pub fn samples(job: &str, stage: &str, step: u64, generation: u64, id: &str) -> String {
    samples_file(job, stage, &format!("step-{step:08}-g{generation}-{id}.tar"))
}

/// Those that have this name.
pub fn samples_file(job: &str, stage: &str, name: &str) -> String {
    format!("jobs/{job}/{stage}/samples/{name}")
}

/// Whether `key` is one that [`samples`] makes.
pub fn is_samples(key: &str) -> bool {
    job_of(key).is_some_and(|job| matches!(job_object(job, key), JobObject::Samples { .. }))
}

/// The parts of a job in the object store that a person may keep apart from the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum JobPart {
    Checkpoints,
    /// Shards, and the candidates that were turned down.
    Pairs,
    /// Lines that its processes have logged, the curves, and pictures that were drawn with checkpoints.
    Logs,
    /// Everything else, such as what was spent at an endpoint.
    Rest,
}

impl JobPart {
    pub const ALL: [Self; 4] = [Self::Checkpoints, Self::Pairs, Self::Logs, Self::Rest];

    pub fn name(self) -> &'static str {
        match self {
            Self::Checkpoints => "checkpoints",
            Self::Pairs => "pairs",
            Self::Logs => "logs",
            Self::Rest => "rest",
        }
    }
}

/// The part of the job that a key belongs to; `None` of what is not the job's.
pub fn part_of(job: &str, key: &str) -> Option<JobPart> {
    let parts: Vec<&str> = key.split('/').collect();
    match parts.as_slice() {
        ["jobs", of, rest @ ..] if *of == job && !rest.is_empty() => Some(match rest {
            ["logs", _] => JobPart::Logs,
            [_, "checkpoints", ..] => JobPart::Checkpoints,
            [_, "pairs" | "rejected", ..] => JobPart::Pairs,
            [_, "tensorboard" | "samples", ..] => JobPart::Logs,
            _ => JobPart::Rest,
        }),
        _ => None,
    }
}

/// What of a job lies at a key, as far as records name such things.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobObject<'a> {
    /// A [`shard`].
    Shard { stage: &'a str, unit: u64, lease_generation: u64 },
    /// A file of the [`checkpoint`] in `folder`.
    CheckpointFile { stage: &'a str, folder: &'a str, step: u64, generation: u64 },
    /// A file of [`samples`].
    Samples { stage: &'a str, name: &'a str, step: u64, generation: u64 },
    /// A file that was being written when its writer died, as a store in a folder leaves it: its name ends in `#` and a number.
    Torn,
    /// Nothing that a record names by itself: a log, a curve, what was spent; or of a kind that this version does not know.
    Other,
}

/// What lies at a key below [`job`].
pub fn job_object<'a>(job: &str, key: &'a str) -> JobObject<'a> {
    let torn = |name: &str| name.split_once('#').is_some_and(|(_, number)| number.parse::<u32>().is_ok());
    if key.rsplit('/').next().is_some_and(torn) {
        return JobObject::Torn;
    }
    let parts: Vec<&str> = key.split('/').collect();
    match parts.as_slice() {
        ["jobs", of, stage, "pairs", name] if *of == job => {
            let name =
                name.strip_prefix("unit-").and_then(|name| name.strip_suffix(".tar")?.split_once("-l"));
            let numbers = name.and_then(|(unit, lease)| Some((unit.parse().ok()?, lease.parse().ok()?)));
            match numbers {
                Some((unit, lease_generation)) if shard(job, stage, unit, lease_generation) == key => {
                    JobObject::Shard { stage, unit, lease_generation }
                }
                Some(_) | None => JobObject::Other,
            }
        }
        ["jobs", of, stage, "checkpoints", name, file] if *of == job && is_plain(file) => {
            let name = name.strip_prefix("step-").and_then(|name| name.split_once("-g"));
            let numbers = name.and_then(|(step, rest)| {
                let (generation, rank) = rest.split_once("-r").unwrap_or((rest, "0"));
                Some((step.parse().ok()?, generation.parse().ok()?, rank.parse().ok()?))
            });
            let folder = key.strip_suffix(file).and_then(|folder| folder.strip_suffix('/'));
            match numbers.zip(folder) {
                Some(((step, generation, rank), folder))
                    if checkpoint_by(rank, job, stage, step, generation) == folder =>
                {
                    JobObject::CheckpointFile { stage, folder, step, generation }
                }
                Some(_) | None => JobObject::Other,
            }
        }
        ["jobs", of, stage, "samples", name] if *of == job && is_plain(stage) => {
            let parts =
                name.strip_prefix("step-").and_then(|rest| rest.strip_suffix(".tar")?.split_once("-g"));
            let parts = parts.and_then(|(step, rest)| {
                let (generation, id) = rest.split_once('-')?;
                Some((step.parse().ok()?, generation.parse().ok()?, id))
            });
            match parts {
                Some((step, generation, id))
                    if is_plain(id) && samples(job, stage, step, generation, id) == key =>
                {
                    JobObject::Samples { stage, name, step, generation }
                }
                Some(_) | None => JobObject::Other,
            }
        }
        _ => JobObject::Other,
    }
}

/// Folder of a checkpoint.
pub fn checkpoint(job: &str, stage: &str, step: u64, generation: u64) -> String {
    format!("{}/step-{step:08}-g{generation}", checkpoints(job, stage))
}

/// Folder of a checkpoint that this rank saves: two ranks that take the other for lost do not write the same objects.
pub fn checkpoint_by(rank: u32, job: &str, stage: &str, step: u64, generation: u64) -> String {
    let folder = checkpoint(job, stage, step, generation);
    if rank == 0 { folder } else { format!("{folder}-r{rank}") }
}

/// Folder of a stage's checkpoints.
pub fn checkpoints(job: &str, stage: &str) -> String {
    format!("jobs/{job}/{stage}/checkpoints")
}

/// A file of the checkpoint in `folder`.
pub fn checkpoint_file(folder: &str, name: &str) -> String {
    format!("{folder}/{name}")
}

/// Folder of a job's log.
pub fn logs(job: &str) -> String {
    format!("{}/logs", self::job(job))
}

/// The job whose log lies in a folder, as [`logs`] makes it.
pub fn job_of_logs(folder: &str) -> Option<&str> {
    folder.strip_prefix("jobs/")?.strip_suffix("/logs").filter(|job| is_plain(job))
}

/// Lines of a job that a process of `node` has logged from a time on, milliseconds since 1970: in the order of the keys
/// they are in the order of time. `id` is of nothing else.
pub fn log_chunk(job: &str, from_unix_millis: u64, node: &str, id: &str) -> String {
    format!("{}/{from_unix_millis:015}-{node}-{id}.jsonl", logs(job))
}

/// The node that has written a [`log_chunk`]; `None` for any other key.
pub fn node_of_log_chunk(key: &str) -> Option<&str> {
    let (folder, name) = key.rsplit_once('/')?;
    job_of_logs(folder)?;
    let (_, rest) = name.strip_suffix(".jsonl")?.split_once('-')?;
    rest.rsplit_once('-').map(|(node, _)| node)
}

/// Whether `key` is that of a file in a checkpoint's folder, as [`checkpoint_file`] of a [`checkpoint`] makes it.
pub fn is_checkpoint_file(key: &str) -> bool {
    let parts: Vec<&str> = key.split('/').collect();
    matches!(parts.as_slice(), ["jobs", _, _, "checkpoints", _, _]) && parts.iter().all(|part| is_plain(part))
}

/// Whether `key` is that of a [`shard`] or of a [`rejected_sample`].
pub fn is_pairs(key: &str) -> bool {
    let parts: Vec<&str> = key.split('/').collect();
    matches!(parts.as_slice(), ["jobs", _, _, "pairs" | "rejected", _])
        && parts.iter().all(|part| is_plain(part))
        && unit_of(key).is_some()
}

/// Whether `key` is that of a folder directly below [`checkpoints`] of this stage.
pub fn is_checkpoint_of(key: &str, job: &str, stage: &str) -> bool {
    let name = key.strip_prefix(&checkpoints(job, stage)).and_then(|rest| rest.strip_prefix('/'));
    name.is_some_and(is_plain)
}

/// Whether a name is safe to append to a folder's key.
pub fn is_plain(name: &str) -> bool {
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !name.is_empty() && name.len() <= 128 && !name.starts_with('.') && name.chars().all(known)
}

/// Folder of a stage's event files of TensorBoard.
pub fn events(job: &str, stage: &str) -> String {
    format!("jobs/{job}/{stage}/tensorboard")
}

/// Event file of what was drawn with a checkpoint, in a folder that TensorBoard takes for a run of its own: beside the curve,
/// which another process writes, it would be read in place of it.
pub fn sample_events(job: &str, stage: &str, step: u64, generation: u64) -> String {
    // Names in the order of steps: TensorBoard does not look back.
    let name = format!("events.out.tfevents.{step:010}-g{generation}.crescendo-samples");
    format!("{}/samples/{name}", events(job, stage))
}

/// Folder of what a job's curators spent at an endpoint, a file a process.
pub fn spending(job: &str, endpoint: &str) -> String {
    format!("jobs/{job}/endpoints/{endpoint}/spent")
}

/// Folder of the answers of a language model, by the digest of its address and name.
pub fn replies(model: &str) -> String {
    format!("{REPLIES}/of-{model}")
}

/// Folder of the answers of all language models.
pub const REPLIES: &str = "endpoint/replies";

/// A language model's answer to the question of this hash, 64 hexadecimal digits.
pub fn reply(model: &str, question: &str) -> String {
    format!("{}/{}/{question}.json", replies(model), question.get(..2).unwrap_or("00"))
}

/// Where an answer lay before answers were kept by model.
pub fn older_reply(question: &str) -> String {
    format!("{REPLIES}/{}/{question}.json", question.get(..2).unwrap_or("00"))
}

/// Whether a key below [`REPLIES`] or [`PROMPTS`] is of a time when records were not kept by model.
pub fn is_of_no_model(key: &str) -> bool {
    let below = [REPLIES, PROMPTS].iter().find_map(|folder| key.strip_prefix(folder)?.strip_prefix('/'));
    below.is_some_and(|rest| !rest.starts_with("of-"))
}

/// Folder of the prompts that a language model wrote, by the digest of its address and name.
pub fn prompts_of(model: &str) -> String {
    format!("{PROMPTS}/of-{model}")
}

/// Folder of the prompts of all language models.
pub const PROMPTS: &str = "prompts";

/// The prompts that a language model wrote when it was asked what has this hash.
pub fn prompts(model: &str, asked: &str) -> String {
    format!("{}/{asked}.json", prompts_of(model))
}

/// Where they lay before prompts were kept by model.
pub fn older_prompts(asked: &str) -> String {
    format!("{PROMPTS}/{asked}.json")
}

/// An object of the prober's own.
pub fn probe(id: &str) -> String {
    format!("probes/{id}.probe")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_sort_as_what_they_are_of() {
        assert_eq!(shard("uno-1", "stage-1", 7, 3), "jobs/uno-1/stage-1/pairs/unit-000007-l3.tar");
        assert_eq!(rejected_sample("j", "s", 12), "jobs/j/s/rejected/unit-000012.tar");
        assert_eq!(checkpoint("j", "s", 500, 2), "jobs/j/s/checkpoints/step-00000500-g2");
        assert_eq!(spending("j", "judge"), "jobs/j/endpoints/judge/spent");
        assert_eq!(reply("77", "ab12"), "endpoint/replies/of-77/ab/ab12.json");
        assert_eq!(prompts("77", "ab12"), "prompts/of-77/ab12.json");
    }

    #[test]
    fn records_of_no_model_are_known() {
        for older in [older_reply("ab12"), older_prompts("ab12")] {
            assert!(is_of_no_model(&older), "{older}");
        }
        for other in [reply("77", "ab12"), prompts("77", "ab12"), "jobs/j/s/pairs/unit-1.tar".to_owned()] {
            assert!(!is_of_no_model(&other), "{other}");
        }
    }

    /// Servers that walk folders leave such a key, or what lies below it, out of their lists.
    #[test]
    fn no_key_is_the_folder_of_another() {
        // Whatever jobs, stages and endpoints are called: also as folders of these keys are.
        let names = ["jobs", "endpoints", "endpoint", "probes", "prompts", "pairs", "checkpoints", "a"];
        let hash = "ab".repeat(32);
        let mut keys = vec![
            reply("77", &hash),
            prompts("77", &hash),
            older_reply(&hash),
            older_prompts(&hash),
            probe("c0ffee"),
        ];
        for job in names {
            for stage in names {
                keys.extend([shard(job, stage, 7, 3), rejected_sample(job, stage, 7)]);
                let folder = checkpoint(job, stage, 500, 2);
                keys.extend(
                    ["manifest.json", "dit_lora.safetensors"].map(|name| checkpoint_file(&folder, name)),
                );
                keys.push(format!("{}/events.out.tfevents.500.crescendo", events(job, stage)));
                keys.push(format!("{}/c0ffee.json", spending(job, stage)));
                keys.push(samples(job, stage, 500, 2, "c0ffee"));
            }
        }
        let known: std::collections::BTreeSet<&str> = keys.iter().map(String::as_str).collect();
        assert_eq!(known.len(), keys.len(), "two objects share a key");
        for key in &keys {
            for (end, _) in key.match_indices('/') {
                assert!(
                    !known.contains(&key[..end]),
                    "{} is an object, and the folder of {key}",
                    &key[..end]
                );
            }
        }
        // It holds for any names, because only the last part of a key has a dot, and no name has one.
        let last_alone = |key: &str| {
            let (folder, last) = key.rsplit_once('/').unwrap_or(("", key));
            last.contains('.') && !folder.contains('.')
        };
        assert_eq!(keys.iter().find(|key| !last_alone(key)), None);
    }

    #[test]
    fn a_unit_is_known_by_its_key() {
        assert_eq!(unit_of(&shard("j", "s", 7, 3)), Some(7));
        assert_eq!(unit_of(&rejected_sample("j", "s", 1_234_567)), Some(1_234_567));
        for other in ["jobs/j/s/pairs/unit-x.tar", "jobs/j/s/pairs/7.tar", "unit-1", ""] {
            assert_eq!(unit_of(other), None, "{other}");
        }
    }

    #[test]
    fn what_a_job_has_written_is_known_by_its_key() {
        let key = shard("j", "s", 7, 3);
        assert_eq!(job_object("j", &key), JobObject::Shard { stage: "s", unit: 7, lease_generation: 3 });
        let folder = checkpoint("j", "s", 500, 2);
        let key = checkpoint_file(&folder, "state.json");
        let expected = JobObject::CheckpointFile { stage: "s", folder: &folder, step: 500, generation: 2 };
        assert_eq!(job_object("j", &key), expected);
        assert_eq!(job_object("j", &format!("{key}#2")), JobObject::Torn);
        let by_another = checkpoint_by(8, "j", "s", 500, 2);
        assert_eq!(by_another, "jobs/j/s/checkpoints/step-00000500-g2-r8");
        let expected =
            JobObject::CheckpointFile { stage: "s", folder: &by_another, step: 500, generation: 2 };
        assert_eq!(job_object("j", &checkpoint_file(&by_another, "state.json")), expected);
        for other in [
            rejected_sample("j", "s", 7),
            log_chunk("j", 5, "n", "id"),
            format!("{folder}/deeper/state.json"),
            "jobs/j/s/checkpoints/step-500-g2/state.json".into(),
            "jobs/j/s/checkpoints/mine/state.json".into(),
            format!("{folder}-r0/state.json"),
            format!("{folder}-r08/state.json"),
            "jobs/j/s/pairs/unit-7-l3.tar".into(),
            "jobs/j/s/pairs/unit-000007.tar".into(),
            "jobs/j/s/pairs/a#b".into(),
            shard("another", "s", 7, 3),
        ] {
            assert_eq!(job_object("j", &other), JobObject::Other, "{other}");
        }
    }

    #[test]
    fn only_files_of_checkpoints_are_such() {
        assert!(is_checkpoint_file(&checkpoint_file(
            &checkpoint("a-1", "stage-1", 100, 2),
            "dit_lora.safetensors"
        )));
        for other in [
            "",
            "jobs/a-1/stage-1/pairs/unit-000000-l1.tar",
            "jobs/a-1/stage-1/checkpoints/step-1-g1",
            "jobs/a-1/stage-1/checkpoints/../secret",
            "jobs/a-1/stage-1/checkpoints/.hidden/x",
            "jobs/a-1/stage-1/checkpoints/step-1-g1/a/b",
            "jobs//stage-1/checkpoints/step-1-g1/a",
            "/jobs/a-1/stage-1/checkpoints/step-1-g1/a",
            "other/a-1/stage-1/checkpoints/step-1-g1/a",
        ] {
            assert!(!is_checkpoint_file(other), "{other}");
        }
    }

    #[test]
    fn only_tars_of_units_hold_pairs() {
        assert!(is_pairs(&shard("a-1", "stage-1", 7, 2)) && is_pairs(&rejected_sample("a-1", "stage-1", 7)));
        for other in [
            "",
            "jobs/a-1/stage-1/pairs/unit-x.tar",
            "jobs/a-1/stage-1/pairs/../unit-000000-l1.tar",
            "jobs/a-1/stage-1/checkpoints/unit-000000-l1.tar",
            "jobs/a-1/stage-1/pairs/a/unit-000000-l1.tar",
            "other/a-1/stage-1/pairs/unit-000000-l1.tar",
        ] {
            assert!(!is_pairs(other), "{other}");
        }
    }

    #[test]
    fn a_stages_checkpoints_are_below_it() {
        assert!(is_checkpoint_of(&checkpoint("job", "one", 2, 1), "job", "one"));
        for other in [
            "jobs/job/two/checkpoints/step-00000002-g1",
            "jobs/job/one/checkpoints/../../two",
            "jobs/job/one/checkpoints/",
            "jobs/job/one/checkpoints/a/b",
        ] {
            assert!(!is_checkpoint_of(other, "job", "one"), "{other}");
        }
    }
}
