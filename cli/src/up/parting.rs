//! The end of `up`: what trains saves a checkpoint, while the controller is there to register it; and what the person at the
//! keyboard is told of it.

use std::time::Duration;

use crescendo_proto::v1::{Checkpoint, Job, JobState, ListJobsRequest, StagePhase, StageStatus};

use super::cluster::Cluster;
use crate::args::Common;
use crate::commands::checkpoints;
use crate::connect::{self, Controller, LOOK};
use crate::failure::Failure;
use crate::show;
use crate::show::job::current_stage;

/// Jobs that are spoken of at most.
const MOST: u32 = 100;

/// Stops everything in order: trainers, curators, the controller.
pub async fn part(common: &Common, cluster: &mut Cluster) {
    let controller = match cluster.controller_address() {
        // It has never served.
        "" => None,
        _ => Controller::local(cluster.target()).ok(),
    };
    let jobs = match &controller {
        Some(controller) => unfinished(controller).await.unwrap_or_else(|failure| {
            show::errln(format_args!("it cannot be told what trains: {failure}"));
            Vec::new()
        }),
        None => Vec::new(),
    };
    let within = cluster.layout().save_within();
    for line in saving(&jobs, within) {
        show::errln(line);
    }
    cluster.stop_trainers(|names, waited| show::errln(waiting(names, waited, within))).await;
    if let Some(controller) = &controller {
        for (job, stage) in jobs.iter().filter_map(trains) {
            let registered = checkpoints::fetch(controller, common, &job.job_id, &stage.name).await;
            show::errln(saved(job, stage, registered.as_deref()));
        }
    }
    show::errln("stopping");
    cluster.stop_rest().await;
    if !jobs.is_empty() {
        show::errln(go_on(common));
    }
}

/// At the start: what goes on from the last time.
pub async fn tell_of_unfinished(controller: &Controller) {
    // Nothing rests on it: `crescendo jobs` tells it too.
    for job in unfinished(controller).await.unwrap_or_default() {
        let stage = current_stage(&job);
        let from = stage.filter(|stage| stage.checkpoint_step > 0);
        let from = from.map_or_else(String::new, |stage| {
            format!(", from step {} of {}", stage.checkpoint_step, stage.name)
        });
        show::errln(format_args!("job {} goes on{from}", job.job_id));
    }
}

async fn unfinished(controller: &Controller) -> Result<Vec<Job>, Failure> {
    let states =
        [JobState::Queued, JobState::Placing, JobState::Running, JobState::Paused, JobState::Preempting];
    let request = ListJobsRequest {
        page_size: MOST,
        states: states.map(|state| state as i32).to_vec(),
        ..ListJobsRequest::default()
    };
    let answer = controller
        .call(LOOK, |channel| {
            let request = request.clone();
            async move { connect::jobs(channel).list_jobs(request).await }
        })
        .await
        .map_err(|status| controller.failure(&status))?;
    Ok(answer.jobs)
}

/// The stage that a job trains now, if it does.
fn trains(job: &Job) -> Option<(&Job, &StageStatus)> {
    let stage = current_stage(job).filter(|stage| stage.phase() == StagePhase::Training)?;
    (job.state() == JobState::Running).then_some((job, stage))
}

/// What is about to happen, a line each.
fn saving(jobs: &[Job], within: Duration) -> Vec<String> {
    let training: Vec<(&Job, &StageStatus)> = jobs.iter().filter_map(trains).collect();
    if training.is_empty() {
        return Vec::new();
    }
    if within.is_zero() {
        return vec!["no checkpoint is saved (--save-within 0s)".into()];
    }
    let mut lines: Vec<String> = training
        .iter()
        .map(|(job, stage)| {
            format!(
                "saving a checkpoint of job {}, {}, at step {} or just after",
                job.job_id, stage.name, stage.step
            )
        })
        .collect();
    lines.push(format!("(at most {}; Ctrl-C again ends at once, without saving)", show::words::span(within)));
    lines
}

/// While it takes its time.
fn waiting(names: &[&str], waited: Duration, within: Duration) -> String {
    format!("waiting for {}: {} s of at most {} s", names.join(", "), waited.as_secs(), within.as_secs())
}

/// What has come of it. `registered` are the checkpoints of the stage, oldest first.
fn saved(job: &Job, stage: &StageStatus, registered: Result<&[Checkpoint], &Failure>) -> String {
    let job = &job.job_id;
    let registered = match registered {
        Ok(registered) => registered,
        Err(failure) => return format!("job {job}: it cannot be told whether it was saved: {failure}"),
    };
    let newest = registered.iter().rfind(|checkpoint| checkpoint.damaged.is_empty());
    match newest {
        Some(newest) if newest.step >= stage.step => format!("job {job}: saved at step {}", newest.step),
        Some(newest) => {
            format!(
                "job {job}: not saved; its last checkpoint is of step {}, at step {}",
                newest.step, stage.step
            )
        }
        None if stage.step == 0 => format!("job {job}: had not begun to train {}", stage.name),
        None => format!("job {job}: not saved; {} will begin anew", stage.name),
    }
}

fn go_on(common: &Common) -> String {
    let dir = common.dir.as_ref().map_or_else(String::new, |dir| format!(" --dir {}", dir.display()));
    format!("stopped; `crescendo up{dir}` goes on from there")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(state: JobState, phase: StagePhase, step: u64) -> Job {
        let stage =
            StageStatus { name: "stage-1".into(), phase: phase as i32, step, ..StageStatus::default() };
        Job { job_id: "a-1".into(), state: state as i32, stages: vec![stage], ..Job::default() }
    }

    #[test]
    fn what_trains_is_named_with_its_step() {
        let minutes = Duration::from_secs(120);
        let training = job(JobState::Running, StagePhase::Training, 120);
        assert_eq!(
            saving(&[training.clone(), job(JobState::Queued, StagePhase::Pending, 0)], minutes),
            [
                "saving a checkpoint of job a-1, stage-1, at step 120 or just after",
                "(at most 2m; Ctrl-C again ends at once, without saving)"
            ]
        );
        assert_eq!(saving(&[training], Duration::ZERO), ["no checkpoint is saved (--save-within 0s)"]);
        assert!(saving(&[job(JobState::Running, StagePhase::Curating, 0)], minutes).is_empty());
        assert!(saving(&[job(JobState::Placing, StagePhase::Training, 5)], minutes).is_empty());
        assert_eq!(
            waiting(&["trainer-0", "trainer-1"], Duration::from_millis(5400), minutes),
            "waiting for trainer-0, trainer-1: 5 s of at most 120 s"
        );
    }

    #[test]
    fn what_has_come_of_it_is_held_to_the_registry() {
        let checkpoint =
            |step, damaged: &str| Checkpoint { step, damaged: damaged.into(), ..Checkpoint::default() };
        let after = |step, registered: &[Checkpoint]| {
            let job = job(JobState::Running, StagePhase::Training, step);
            saved(&job, &job.stages[0], Ok(registered))
        };
        assert_eq!(after(120, &[checkpoint(100, ""), checkpoint(121, "")]), "job a-1: saved at step 121");
        assert_eq!(
            after(120, &[checkpoint(100, ""), checkpoint(121, "torn")]),
            "job a-1: not saved; its last checkpoint is of step 100, at step 120"
        );
        assert_eq!(after(120, &[]), "job a-1: not saved; stage-1 will begin anew");
        assert_eq!(after(0, &[]), "job a-1: had not begun to train stage-1");
        let job = job(JobState::Running, StagePhase::Training, 1);
        let failure = Failure::Unreachable("no answer".into());
        assert!(saved(&job, &job.stages[0], Err(&failure)).ends_with("whether it was saved: no answer"));
    }
}
