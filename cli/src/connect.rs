//! Calling the controller, through an outage, with a token if there is one.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::path::Path;
use std::time::Duration;

use crescendo_node::tls::Dialer;
use crescendo_proto::status::is_passing;
use tokio::time::Instant;
use tonic::{Response, Status};

use crate::args::Common;
use crate::failure::Failure;
use crate::settings::token::Token;
use crate::settings::{self, Origin, Target};
use crate::show;
use crate::wire::{self, Wire};

/// Looking at things: a person waits.
pub const LOOK: Duration = Duration::from_secs(3);
/// Changing things: worth some patience.
pub const CHANGE: Duration = Duration::from_secs(60);
/// And of one that has a curator count what a deletion would remove.
pub const DELETE_COUNT: Duration = Duration::from_secs(90);
/// Watching: a controller may take its time to come back.
pub const WATCH: Duration = Duration::from_secs(600);

/// One try of one call.
const TRY: Duration = Duration::from_secs(10);
/// Silence of this length before the caller is told that it has to wait.
const QUIET: Duration = Duration::from_secs(1);

/// A token that is read from a file or a program is read again after this: it may have been renewed.
const TOKEN_KEPT: Duration = Duration::from_secs(120);

/// The controller, or several of which one leads.
pub struct Controller {
    channels: Vec<(String, wire::Plain)>,
    /// The one that answered last.
    current: Cell<usize>,
    target: Target,
    token: RefCell<Option<(Instant, Option<Token>)>>,
}

impl Controller {
    /// From the command line, the context, or the cluster that `up` runs.
    pub async fn find(common: &Common) -> Result<Controller, Failure> {
        Controller::to(settings::find(common)?).await
    }

    /// A controller of this machine without login, as `up` starts it.
    pub fn local(target: Target) -> Result<Controller, Failure> {
        Controller::over(target, None)
    }

    pub async fn to(target: Target) -> Result<Controller, Failure> {
        let mut tls = false;
        for address in &target.addresses {
            tls |= wire::place(address, &target)?.tls;
        }
        let dialer = if tls { Some(wire::dialer(&target.tls).await?) } else { None };
        Controller::over(target, dialer.as_ref())
    }

    fn over(target: Target, tls: Option<&Dialer>) -> Result<Controller, Failure> {
        let channels = target
            .addresses
            .iter()
            .map(|address| Ok((address.clone(), wire::open(&wire::place(address, &target)?, tls)?)))
            .collect::<Result<_, Failure>>()?;
        Ok(Controller { channels, current: Cell::new(0), target, token: RefCell::new(None) })
    }

    /// One controller each, for what is asked of all of them.
    pub fn each(&self) -> Vec<(String, Result<Wire, Failure>)> {
        let wire = |channel: &wire::Plain| wire::with_token(channel.clone(), self.token()?.as_ref());
        self.channels.iter().map(|(address, channel)| (address.clone(), wire(channel))).collect()
    }

    /// The tenant that the context names; empty if none.
    pub fn tenant(&self) -> String {
        self.target.tenant.clone().unwrap_or_default()
    }

    /// Folder or URL of the object store, as the context or `up` knows it.
    pub fn object_store(&self) -> Option<&str> {
        self.target.object_store.as_deref()
    }

    /// What relative paths of a spec start from on this machine, as `up` knows it.
    pub fn library_root(&self) -> Option<&Path> {
        self.target.library_root.as_deref()
    }

    fn current(&self) -> Option<&(String, wire::Plain)> {
        self.channels.get(self.current.get() % self.channels.len().max(1))
    }

    /// The next call goes to another one, if there is one.
    pub fn turn(&self) {
        self.current.set(self.current.get().wrapping_add(1));
    }

    pub fn channel(&self) -> Result<Wire, Failure> {
        let found = self.current().map(|(_, channel)| channel.clone());
        let channel = found.ok_or_else(|| Failure::Usage("--controller is empty".into()))?;
        wire::with_token(channel, self.token()?.as_ref())
    }

    fn token(&self) -> Result<Option<Token>, Failure> {
        let kept = self.token.borrow().clone();
        if let Some((at, token)) = kept
            && at.elapsed() < TOKEN_KEPT
        {
            return Ok(token);
        }
        let token = self.target.token.read()?;
        self.token.replace(Some((Instant::now(), token.clone())));
        Ok(token)
    }

    /// Calls until there is an answer or a refusal, at most for `within`.
    ///
    /// The call may reach the controller more than once: it must be one that does not mind.
    pub async fn call<T, F, Fut>(&self, within: Duration, mut call: F) -> Result<T, Status>
    where
        F: FnMut(Wire) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let began = Instant::now();
        let mut pause = Duration::from_millis(100);
        let mut told = false;
        loop {
            let channel =
                self.channel().map_err(|failure| Status::failed_precondition(failure.to_string()))?;
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
        let hint = match &self.target.origin {
            Origin::Up(dir) => format!("; is `crescendo up` in {} still running?", dir.display()),
            Origin::Context(name) => format!(" (context {name}; `crescendo doctor` looks closer)"),
            Origin::Flags => String::new(),
        };
        let why = brief(status);
        Failure::Unreachable(format!(
            "the controller at {} cannot be reached: {why}{hint}",
            addresses.join(", ")
        ))
    }
}

/// Whether a stream that ended so is taken up again. One that was cut on its way has a cause (a reset, a closed connection), of
/// whatever code its transport makes it; what a controller answered has none.
pub fn is_cut(status: &Status) -> bool {
    is_passing(status.code()) || std::error::Error::source(status).is_some()
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
        pub fn $name(channel: Wire) -> crescendo_proto::v1::$module::$client<Wire> {
            crescendo_proto::v1::$module::$client::new(channel).max_decoding_message_size(crescendo_proto::MAX_REPLY_BYTES)
        }
    )*};
}

clients! {
    access => access_service_client::AccessServiceClient,
    jobs => job_service_client::JobServiceClient,
    nodes => node_service_client::NodeServiceClient,
    checkpoints => checkpoint_service_client::CheckpointServiceClient,
    curation => curation_service_client::CurationServiceClient,
    objects => object_service_client::ObjectServiceClient,
    queues => queue_service_client::QueueServiceClient,
    review => review_service_client::ReviewServiceClient,
    samples => sample_service_client::SampleServiceClient
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_was_cut_is_taken_up_again_and_an_answer_is_not() {
        // What a transport makes of a reset: of any code, and with its cause.
        let mut cut = Status::data_loss("stream removed");
        cut.set_source(std::sync::Arc::new(std::io::Error::other("connection reset")));
        assert!(!is_passing(cut.code()) && is_cut(&cut), "{cut:?}");
        assert!(is_cut(&Status::unavailable("not the leader")));
        for answer in [Status::not_found("job"), Status::permission_denied("x"), Status::data_loss("x")] {
            assert!(!is_cut(&answer), "{answer:?}");
        }
    }
}
