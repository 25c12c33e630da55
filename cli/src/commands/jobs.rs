//! `crescendo jobs`.

use crescendo_proto::v1::{Job, JobState, ListJobsRequest};

use crate::args::{Common, JobsArgs, Output, State};
use crate::connect::{self, Controller, LOOK};
use crate::failure::Failure;
use crate::show::{self, job, json, width};

/// Most that one page may hold.
const PAGE: u32 = 500;

pub async fn run(common: &Common, args: &JobsArgs) -> Result<(), Failure> {
    let controller = Controller::find(common).await?;
    let tenant = if args.tenant.is_empty() { controller.tenant() } else { args.tenant.clone() };
    let wanted = ListJobsRequest {
        states: args.state.iter().map(|state| wire(*state) as i32).collect(),
        name_prefix: args.name.clone(),
        tenant,
        labels: args.labels.iter().cloned().collect(),
        ..ListJobsRequest::default()
    };
    let (jobs, more) = list(&controller, common, &wanted, args.limit as usize).await?;
    match common.output {
        Output::Json => json::print(&jobs.iter().map(json::job).collect()),
        Output::Table => {
            show::out(width::wrapped(&job::list(&jobs).to_string(), width::of_stdout(), 4));
        }
    }
    if more {
        show::errln(format_args!("there are more; --limit shows more than {}", args.limit));
    }
    Ok(())
}

/// The jobs that are wanted, newest first, at most `limit`; and whether there are more.
pub async fn list(
    controller: &Controller,
    common: &Common,
    wanted: &ListJobsRequest,
    limit: usize,
) -> Result<(Vec<Job>, bool), Failure> {
    let mut jobs = Vec::new();
    let mut page_token = String::new();
    loop {
        let left = u32::try_from(limit - jobs.len()).unwrap_or(PAGE);
        let request =
            ListJobsRequest { page_size: left.min(PAGE), page_token: page_token.clone(), ..wanted.clone() };
        let page = controller
            .call(common.timeout.unwrap_or(LOOK), |channel| {
                let request = request.clone();
                async move { connect::jobs(channel).list_jobs(request).await }
            })
            .await
            .map_err(|status| controller.failure(&status))?;
        jobs.extend(page.jobs);
        page_token = page.next_page_token;
        if page_token.is_empty() || jobs.len() >= limit {
            jobs.truncate(limit);
            return Ok((jobs, !page_token.is_empty()));
        }
    }
}

fn wire(state: State) -> JobState {
    match state {
        State::Queued => JobState::Queued,
        State::Placing => JobState::Placing,
        State::Running => JobState::Running,
        State::Paused => JobState::Paused,
        State::Preempting => JobState::Preempting,
        State::Succeeded => JobState::Succeeded,
        State::Failed => JobState::Failed,
        State::Cancelled => JobState::Cancelled,
    }
}
