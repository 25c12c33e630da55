//! Finding the controller, and calling it through an outage.

use std::cell::Cell;
use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use crescendo_proto::status::is_passing;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

use crate::args::Common;
use crate::failure::Failure;
use crate::show;
use crate::up::state::{self, UpState};

/// Looking at things: a person waits.
pub const LOOK: Duration = Duration::from_secs(3);
/// Changing things: worth some patience.
pub const CHANGE: Duration = Duration::from_secs(60);
/// Watching: a controller may take its time to come back.
pub const WATCH: Duration = Duration::from_secs(600);

/// One try of one call.
const TRY: Duration = Duration::from_secs(10);
/// Silence of this length before the caller is told that it has to wait.
const QUIET: Duration = Duration::from_secs(1);
/// Largest answer: 500 jobs with their specs fit several times over.
const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;

/// The controller, or several of which one leads.
pub struct Controller {
    channels: Vec<(String, Channel)>,
    /// The one that answered last.
    current: Cell<usize>,
    /// Folder of the local cluster whose address this is, if it is one's.
    started_in: Option<PathBuf>,
}

impl Controller {
    /// From `--controller`, or else from the cluster that `up` runs.
    pub fn find(common: &Common) -> Result<Controller, Failure> {
        if !common.controller.is_empty() {
            return Controller::at(&common.controller, None);
        }
        let (path, state) = state::find(common.dir.as_deref())?;
        let Some(UpState { dir, controller, .. }) = state else {
            let path = path.display();
            return Err(Failure::Unreachable(format!(
                "no controller: give its address with --controller or CRESCENDO_CONTROLLER, or start a cluster on this machine with `crescendo up` (there is no {path})"
            )));
        };
        Controller::at(&[controller], Some(dir))
    }

    pub fn at(addresses: &[String], started_in: Option<PathBuf>) -> Result<Controller, Failure> {
        let mut channels = Vec::new();
        for address in addresses {
            let url = if address.contains("://") { address.clone() } else { format!("http://{address}") };
            let endpoint = Endpoint::from_shared(url)
                .map_err(|error| {
                    Failure::Usage(format!("`{address}` is not an address (host:port): {error}"))
                })?
                .connect_timeout(Duration::from_secs(3))
                .tcp_nodelay(true)
                .http2_keep_alive_interval(Duration::from_secs(10))
                .keep_alive_timeout(Duration::from_secs(5));
            channels.push((address.clone(), endpoint.connect_lazy()));
        }
        Ok(Controller { channels, current: Cell::new(0), started_in })
    }

    fn current(&self) -> Option<&(String, Channel)> {
        self.channels.get(self.current.get() % self.channels.len().max(1))
    }

    /// The next call goes to another one, if there is one.
    pub fn turn(&self) {
        self.current.set(self.current.get().wrapping_add(1));
    }

    pub fn channel(&self) -> Result<Channel, Failure> {
        let found = self.current().map(|(_, channel)| channel.clone());
        found.ok_or_else(|| Failure::Usage("--controller is empty".into()))
    }

    /// Calls until there is an answer or a refusal, at most for `within`.
    ///
    /// The call may reach the controller more than once: it must be one that does not mind.
    pub async fn call<T, F, Fut>(&self, within: Duration, mut call: F) -> Result<T, Status>
    where
        F: FnMut(Channel) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let began = Instant::now();
        let mut pause = Duration::from_millis(100);
        let mut told = false;
        loop {
            let channel = self.channel().map_err(|failure| Status::invalid_argument(failure.to_string()))?;
            let left = within.saturating_sub(began.elapsed()).max(Duration::from_millis(100));
            let status = match tokio::time::timeout(TRY.min(left), call(channel)).await {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) => status,
                Err(_) => Status::deadline_exceeded("no answer in time"),
            };
            if !is_passing(status.code()) || began.elapsed() + pause >= within {
                return Err(status);
            }
            if !told && began.elapsed() > QUIET && within > LOOK {
                show::errln(format_args!(
                    "the controller cannot be reached ({}); trying again",
                    brief(&status)
                ));
                told = true;
            }
            self.turn();
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(2));
        }
    }

    /// What an error of [`Controller::call`] means to the caller.
    pub fn failure(&self, status: &Status) -> Failure {
        if is_passing(status.code()) { self.unreachable(status) } else { Failure::refused(status) }
    }

    pub fn unreachable(&self, status: &Status) -> Failure {
        let addresses: Vec<&str> = self.channels.iter().map(|(address, _)| address.as_str()).collect();
        let hint = match &self.started_in {
            Some(dir) => format!("; is `crescendo up` in {} still running?", dir.display()),
            None => String::new(),
        };
        let why = brief(status);
        Failure::Unreachable(format!(
            "the controller at {} cannot be reached: {why}{hint}",
            addresses.join(", ")
        ))
    }
}

/// The status as one short line, with the innermost cause: "transport error" says nothing.
pub fn brief(status: &Status) -> String {
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(status);
    let mut last = None;
    while let Some(error) = cause {
        last = Some(error.to_string());
        cause = error.source();
    }
    let text = match last {
        Some(last) => last,
        None if status.message().is_empty() => status.code().to_string(),
        None => status.message().to_owned(),
    };
    text.lines().next().unwrap_or_default().to_owned()
}

macro_rules! clients {
    ($($name:ident => $module:ident :: $client:ident),*) => {$(
        pub fn $name(channel: Channel) -> crescendo_proto::v1::$module::$client<Channel> {
            crescendo_proto::v1::$module::$client::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
        }
    )*};
}

clients! {
    jobs => job_service_client::JobServiceClient,
    nodes => node_service_client::NodeServiceClient,
    checkpoints => checkpoint_service_client::CheckpointServiceClient,
    curation => curation_service_client::CurationServiceClient
}
