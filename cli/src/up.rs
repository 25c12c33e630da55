//! `crescendo up`: the processes of a cluster on this machine, on loopback, each restarted when it dies.
//!
//! ```text
//!   DIR/up.json   addresses and process ids, for the other commands
//!   DIR/up.lock   held while `up` runs
//!   DIR/store     records of the embedded store      DIR/objects  pair shards and checkpoints
//!   DIR/logs      a log file a process               DIR/run      port files
//! ```
//!
//! When it is stopped, trainers save a checkpoint, then curators give back their units, then the controller ends.

pub mod binaries;
mod cluster;
mod layout;
mod page;
mod parting;
mod process;
mod signals;
pub mod state;

use std::path::Path;
use std::time::Duration;

use crescendo_core::spec;
use crescendo_proto::v1::{JobState, NodeReach};
use tokio::time::Instant;

use crate::args::{Common, Output, UpArgs};
use crate::artifact::handover;
use crate::commands::spec_file::{SpecFile, read_spec};
use crate::commands::{get, nodes, submit, watch};
use crate::connect::Controller;
use crate::failure::Failure;
use crate::show::{self, problems};
use cluster::Cluster;
use layout::Layout;
use signals::Signals;

/// From the start of the last process until the controller must know all nodes.
const NODES_WITHIN: Duration = Duration::from_secs(60);

pub async fn run(common: &Common, args: &UpArgs) -> Result<(), Failure> {
    let mut signals = Signals::install(args.stop_on_stdin_close)?;
    if let Some(file) = &args.run {
        check_spec(file)?;
    }
    let layout = Layout::prepare(common.dir.as_deref(), args)?;
    let mut cluster = Cluster::new(layout);
    let outcome = tokio::select! {
        outcome = work(common, args, &mut cluster) => outcome,
        () = signals.stop() => match args.run {
            Some(_) => Err(Failure::Interrupted),
            None => Ok(()),
        },
    };
    tokio::select! {
        () = parting::part(common, &mut cluster) => {}
        () = signals.stop() => {
            cluster.kill();
            show::errln(format_args!("ended at once: what was not saved will be trained again"));
        }
    }
    outcome
}

/// A spec that is no good is told before anything is started.
fn check_spec(file: &Path) -> Result<(), Failure> {
    if file == Path::new("-") {
        return Err(Failure::Usage("--run needs a file, not standard input".into()));
    }
    let yaml = read_spec(file)?;
    spec::parse(&yaml).map(drop).map_err(|found| {
        show::err(problems::render(file, &yaml, &found));
        Failure::InvalidSpec
    })
}

async fn work(common: &Common, args: &UpArgs, cluster: &mut Cluster) -> Result<(), Failure> {
    cluster.start_controller().await?;
    cluster.start_nodes().await?;
    let address = cluster.controller_address().to_owned();
    let controller = Controller::local(cluster.target())?;
    tokio::select! {
        joined = nodes_joined(&controller, cluster.layout().node_count()) => joined?,
        ended = cluster.supervise() => return Err(ended),
    }
    let layout = cluster.layout();
    show::errln(format_args!(
        "controller at {address}, {} nodes, everything in {}",
        layout.node_count(),
        layout.dir.display()
    ));
    if let Some(page) = page::at(&address).await {
        show::errln(format_args!("web page: {page}"));
    }
    if args.run.is_none() {
        show::errln(format_args!(
            "submit a job from another terminal: crescendo submit FILE --watch\nCtrl-C stops the cluster"
        ));
    }
    parting::tell_of_unfinished(&controller).await;
    tokio::select! {
        outcome = run_job(common, args, &controller) => outcome,
        ended = cluster.supervise() => Err(ended),
    }
}

/// Waits until every node has opened its session.
async fn nodes_joined(controller: &Controller, expected: usize) -> Result<(), Failure> {
    let began = Instant::now();
    loop {
        let known = nodes::fetch(controller, NODES_WITHIN).await?;
        let connected = known.iter().filter(|node| node.reach() == NodeReach::Connected).count();
        if connected >= expected {
            return Ok(());
        }
        if began.elapsed() > NODES_WITHIN {
            return Err(Failure::other(format!(
                "only {connected} of {expected} nodes came up; see the logs"
            )));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// With `--run`: from submit to the end of the job. Without it: never ends by itself.
async fn run_job(common: &Common, args: &UpArgs, controller: &Controller) -> Result<(), Failure> {
    let Some(file) = &args.run else { return std::future::pending().await };
    let file = SpecFile::read(common, file, &[])?;
    let answer = submit::submit(controller, common, &file, submit::new_request_id()).await?;
    show::err(problems::warnings(&submit::as_problems(answer.warnings)));
    let job = answer.job.unwrap_or_default();
    if common.output == Output::Table {
        show::outln(&job.job_id);
    }
    let ended = watch::follow(controller, common, &job.job_id).await?;
    if let Some(path) = &args.result {
        // What is watched leaves the resolved spec out.
        let job = get::fetch(controller, common, &job.job_id).await?;
        write_result(path, &get::whole(controller, common, &job).await?)?;
    }
    if ended.state() == JobState::Succeeded {
        handover::say(controller, common, &ended.job_id, false).await;
    }
    watch::verdict(&ended)
}

fn write_result(path: &Path, job: &serde_json::Value) -> Result<(), Failure> {
    let text = format!("{job:#}\n");
    state::replace(path, text.as_bytes()).map_err(Failure::from_error(format!("write {}", path.display())))
}
