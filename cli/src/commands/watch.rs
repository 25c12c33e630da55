//! `crescendo watch`: follows a job over restarts of the controller, from the revision that it has seen.

use std::time::Duration;

use crescendo_proto::v1::{Job, JobState, WatchJobRequest};
use tokio::time::{Instant, MissedTickBehavior};
use tonic::Status;

use crate::args::{Common, JobArgs};
use crate::artifact::handover;
use crate::connect::{self, Controller, LOOK, WATCH, brief};
use crate::failure::Failure;
use crate::show::progress::{self, Progress};
use crate::show::{self, words};

/// Between two tries to take the connection up again: at first, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(3));

/// What is shown of a job that tells nothing new is looked over this often.
const TICK: Duration = Duration::from_secs(1);

pub async fn run(common: &Common, args: &JobArgs) -> Result<(), Failure> {
    let controller = Controller::find(common).await?;
    let ended = follow_or_interrupt(&controller, common, &args.job).await?;
    last_words(&controller, common, &ended).await
}

/// Shows a job until it ends, and gives it back as it ended. Ctrl-C ends the watching.
pub async fn follow_or_interrupt(
    controller: &Controller,
    common: &Common,
    job_id: &str,
) -> Result<Job, Failure> {
    tokio::select! {
        followed = follow(controller, common, job_id) => followed,
        _ = tokio::signal::ctrl_c() => {
            show::errln(format_args!("\nstopped watching; the job goes on. Watch again: crescendo watch {job_id}"));
            Err(Failure::Interrupted)
        }
    }
}

/// Shows a job until it ends, and gives it back as it ended.
pub async fn follow(controller: &Controller, common: &Common, job_id: &str) -> Result<Job, Failure> {
    let mut progress = progress::new(common.output);
    let followed = follow_over_outages(controller, common, job_id, progress.as_mut()).await;
    progress.close();
    followed
}

async fn follow_over_outages(
    controller: &Controller,
    common: &Common,
    job_id: &str,
    progress: &mut dyn Progress,
) -> Result<Job, Failure> {
    let mut seen = Seen { revision: 0, last: None };
    let mut pause = PAUSE.0;
    let mut lost_at: Option<Instant> = None;
    loop {
        let was_seen = seen.updates();
        let status = match follow_once(controller, job_id, &mut seen, progress, &mut lost_at).await {
            Ok(Some(job)) => return Ok(job),
            Ok(None) => Status::unavailable("the controller closed the connection"),
            Err(status) if !connect::is_cut(&status) => return Err(Failure::refused(&status)),
            Err(status) => status,
        };
        if seen.updates() != was_seen {
            pause = PAUSE.0;
        }
        let since = *lost_at.get_or_insert_with(Instant::now);
        let patience = common.timeout.unwrap_or(if seen.last.is_some() { WATCH } else { LOOK });
        if since.elapsed() + pause >= patience {
            return Err(controller.unreachable(&status));
        }
        if seen.last.is_some() {
            progress.lost(&brief(&status));
        }
        controller.turn();
        tokio::time::sleep(pause).await;
        progress.tick();
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// What has been shown.
struct Seen {
    revision: u64,
    last: Option<(u64, Job)>,
}

impl Seen {
    fn updates(&self) -> u64 {
        self.last.as_ref().map_or(0, |(count, _)| *count)
    }
}

/// One stream, until the job ends (then it is given back) or the stream does.
async fn follow_once(
    controller: &Controller,
    job_id: &str,
    seen: &mut Seen,
    progress: &mut dyn Progress,
    lost_at: &mut Option<Instant>,
) -> Result<Option<Job>, Status> {
    let channel = controller.channel().map_err(|failure| Status::invalid_argument(failure.to_string()))?;
    let request = WatchJobRequest { job_id: job_id.to_owned(), from_revision: seen.revision };
    let mut updates = connect::jobs(channel).watch_job(request).await?.into_inner();
    if lost_at.take().is_some() && seen.last.is_some() {
        progress.found();
    }
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let update = tokio::select! {
            update = updates.message() => update?,
            _ = tick.tick() => {
                progress.tick();
                continue;
            }
        };
        let Some(update) = update else { break };
        let Some(job) = update.job else { continue };
        seen.revision = seen.revision.max(job.revision);
        progress.update(&job);
        if words::is_final(job.state()) {
            return Ok(Some(job));
        }
        seen.last = Some((seen.updates() + 1, job));
    }
    Ok(None)
}

/// What to do with a job that has succeeded; and the exit code.
pub async fn last_words(controller: &Controller, common: &Common, ended: &Job) -> Result<(), Failure> {
    if ended.state() == JobState::Succeeded {
        handover::say(controller, common, &ended.job_id, true).await;
    }
    verdict(ended)
}

/// The exit code of a job that has ended.
pub fn verdict(job: &Job) -> Result<(), Failure> {
    match job.state() {
        JobState::Succeeded => Ok(()),
        state => Err(Failure::JobEnded {
            job_id: job.job_id.clone(),
            state: words::job_state(state),
            reason: job.reason.clone(),
        }),
    }
}
