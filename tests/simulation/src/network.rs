//! The network between nodes, people and controllers: calls go straight into the real services, with what lies between
//! them made of delays, cuts in either direction, broken connections and answers that are lost.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crescendo_controller::access::Caller;
use crescendo_node::session::call::{ControllerChannel, Link};
use futures::stream;
use http_body_util::{BodyExt as _, StreamBody};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};
use tonic::body::Body;
use tonic::service::Routes;
use tonic::{Code, Status};
use tower::ServiceExt as _;
use tower::util::BoxCloneSyncService;

use crate::changes::Changes;
use crate::process::Process;
use crate::rng::SharedRng;
use crate::trace::Trace;

/// Limit of making a connection, as the dialer has it.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// A connection over which nothing comes for this long is given up: interval and patience of the keepalive together.
const KEEPALIVE: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Towards the controller.
    Up,
    Down,
}

/// What lies between one peer and one controller. Faults that overlap add up.
#[derive(Clone, Debug, Default)]
struct Line {
    cuts_up: u32,
    cuts_down: u32,
    /// When it was last whole.
    cut_since: Option<Instant>,
    delay: Duration,
    /// Answers that get lost, of a thousand.
    lossy_permille: u64,
}

impl Line {
    fn is_cut(&self, way: Way) -> bool {
        match way {
            Way::Up => self.cuts_up > 0,
            Way::Down => self.cuts_down > 0,
        }
    }
}

#[derive(Clone)]
struct Server {
    routes: Routes,
    process: Arc<Process>,
}

type Ends = (usize, usize);

struct State {
    lines: BTreeMap<Ends, Line>,
    servers: BTreeMap<usize, Server>,
}

/// Clones are the same network. Peers and controllers are numbered.
#[derive(Clone)]
pub struct Network {
    state: Arc<Mutex<State>>,
    /// Of lines.
    changes: Changes,
    rng: SharedRng,
    trace: Trace,
}

fn unavailable(why: impl Into<String>) -> Status {
    Status::unavailable(why)
}

impl Network {
    pub fn new(rng: SharedRng, trace: Trace) -> Self {
        let state = State { lines: BTreeMap::new(), servers: BTreeMap::new() };
        Self { state: Arc::new(Mutex::new(state)), changes: Changes::default(), rng, trace }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn listen(&self, controller: usize, routes: Routes, process: Arc<Process>) {
        self.lock().servers.insert(controller, Server { routes, process });
    }

    pub fn hang_up(&self, controller: usize) {
        self.lock().servers.remove(&controller);
    }

    fn change(&self, ends: Ends, change: impl FnOnce(&mut Line)) {
        change(self.lock().lines.entry(ends).or_default());
        self.changes.tell();
    }

    /// Cuts a line, or takes one cut of it back.
    pub fn cut(&self, ends: Ends, way: Way, begins: bool) {
        self.change(ends, |line| {
            let count = match way {
                Way::Up => &mut line.cuts_up,
                Way::Down => &mut line.cuts_down,
            };
            *count = if begins { *count + 1 } else { count.saturating_sub(1) };
            line.cut_since = match (line.cuts_up + line.cuts_down, line.cut_since) {
                (0, _) => None,
                (_, since) => since.or_else(|| Some(Instant::now())),
            };
        });
    }

    pub fn delay(&self, ends: Ends, delay: Duration) {
        self.change(ends, |line| line.delay = delay);
    }

    pub fn lose_answers(&self, ends: Ends, permille: u64) {
        self.change(ends, |line| line.lossy_permille = permille);
    }

    /// All lines are whole again.
    pub fn heal(&self) {
        self.lock().lines.clear();
        self.changes.tell();
    }

    /// The ways of a peer to each of the controllers.
    pub fn links(&self, peer: usize, controllers: usize, caller: &Caller) -> Vec<Link> {
        let link = |controller: usize| {
            let (network, caller) = (self.clone(), caller.clone());
            Link::new(format!("controller-{controller}:7400"), move || {
                network.channel((peer, controller), caller.clone())
            })
        };
        (0..controllers).map(link).collect()
    }

    pub fn channel(&self, ends: Ends, caller: Caller) -> ControllerChannel {
        let network = self.clone();
        BoxCloneSyncService::new(tower::service_fn(move |request| {
            let (network, caller) = (network.clone(), caller.clone());
            async move { network.carry(ends, caller, request).await }
        }))
    }

    /// One call, from its first byte to the first one of its answer.
    async fn carry(
        self,
        ends: Ends,
        caller: Caller,
        mut request: http::Request<Body>,
    ) -> Result<http::Response<Body>, Status> {
        timeout(CONNECT_WITHIN, self.pass(ends, Way::Up))
            .await
            .map_err(|_| unavailable(format!("no connection within {CONNECT_WITHIN:?}")))?;
        let server = self.lock().servers.get(&ends.1).cloned();
        let Some(Server { routes, process }) = server else {
            return Err(unavailable("connection refused"));
        };
        request.extensions_mut().insert(caller);
        let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        self.trace.note(format_args!("{}->{} {method}", ends.0, ends.1));
        let dead = process.dead.clone();
        let wire = Wire { network: self.clone(), ends, process: process.clone() };
        let request = request.map(|body| wire.body(body, Way::Up));
        let (reply, answer) = oneshot::channel();
        process.spawn(async move {
            // Who does not wait any more does not hear of it.
            let _ = reply.send(routes.oneshot(request).await);
        });
        let response = tokio::select! {
            biased;
            () = dead.cancelled() => return Err(unavailable("connection reset by peer")),
            () = self.given_up(ends) => return Err(unavailable("keepalive timed out")),
            answer = answer => match answer {
                Ok(Ok(response)) => response,
                Ok(Err(never)) => match never {},
                Err(_) => return Err(unavailable("connection reset by peer")),
            },
        };
        let permille = self.lock().lines.get(&ends).map_or(0, |line| line.lossy_permille);
        if permille > 0 && self.rng.draw(|rng| rng.chance(permille)) {
            self.trace.note(format_args!("{}<-{} {method}: answer lost", ends.0, ends.1));
            return Err(unavailable("connection reset by peer"));
        }
        tokio::select! {
            biased;
            () = dead.cancelled() => return Err(unavailable("connection reset by peer")),
            () = self.given_up(ends) => return Err(unavailable("keepalive timed out")),
            () = self.pass(ends, Way::Down) => {}
        }
        Ok(response.map(|body| wire.body(body, Way::Down)))
    }

    /// Takes as long as one message does; as long as the line is cut, if it is.
    async fn pass(&self, ends: Ends, way: Way) {
        let whole = || match self.lock().lines.get(&ends) {
            Some(line) => (!line.is_cut(way)).then_some(line.delay),
            None => Some(Duration::ZERO),
        };
        let delay = self.changes.until(whole).await;
        let latency = Duration::from_millis(self.rng.draw(|rng| rng.between(1, 4)));
        tokio::time::sleep(latency + delay).await;
    }

    /// Resolves once a connection over this line would have been given up by the keepalive of either end.
    async fn given_up(&self, ends: Ends) {
        let cut_since = || self.lock().lines.get(&ends).and_then(|line| line.cut_since);
        loop {
            let since = self.changes.until(cut_since).await;
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(since + KEEPALIVE) => return,
                () = self.changes.until(|| (cut_since() != Some(since)).then_some(())) => {}
            }
        }
    }
}

/// One connection.
#[derive(Clone)]
struct Wire {
    network: Network,
    ends: Ends,
    /// The controller's.
    process: Arc<Process>,
}

impl Wire {
    /// The same messages, each of them when the network has carried it.
    fn body(&self, body: Body, way: Way) -> Body {
        let begin = Some((body, self.clone()));
        Body::new(StreamBody::new(stream::unfold(begin, move |state| async move {
            let (mut body, wire) = state?;
            let carried = async {
                let frame = body.frame().await;
                wire.network.pass(wire.ends, way).await;
                frame
            };
            let broken = |why: &str| Status::new(Code::Unavailable, why);
            let frame = tokio::select! {
                biased;
                () = wire.process.dead.cancelled() => Some(Err(broken("connection reset by peer"))),
                () = wire.network.given_up(wire.ends) => Some(Err(broken("keepalive timed out"))),
                frame = carried => frame,
            };
            match frame? {
                Ok(frame) => Some((Ok(frame), Some((body, wire)))),
                Err(status) => Some((Err(status), None)),
            }
        })))
    }
}
