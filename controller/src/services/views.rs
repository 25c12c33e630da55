//! Watches of views: one task a stream, which looks at a snapshot of the cluster and sends what has changed.
//!
//! ```text
//!   engine ─ one snapshot a second ─▶ Snapshots ─▶ Watch ─ of each view what is new ─▶ caller
//!                                     LogReader, history of a checkpoint ─┘
//! ```
//!
//! However many watches there are, the engine is asked once a second; and who takes slowly is told less often.

mod shown;

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use crescendo_core::access::{Scope, decide, rule_of};
use crescendo_core::error::RequestError;
use crescendo_dataset::checkpoint::HISTORY_FILE;
use crescendo_node::runtime::supervise::Tasks;
use crescendo_proto::v1::view::Shows;
use crescendo_proto::v1::view_service_server::ViewService;
use crescendo_proto::v1::watch_views_response::Shown;
use crescendo_proto::{SILENCE_LIMIT, status, v1};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tonic::{Request, Response, Status};

use crate::access::{Caller, caller_of, trail_of};
use crate::curves::{self, CurveHub, CurveSource};
use crate::engine::{self, Snapshot};
use crate::leadership::EngineHandle;
use crate::logs::{LogHub, MAX_LINES};
use crate::relay::Relays;
use crate::services::log_reader::{KeptLog, LINES_WAITING, LogReader};
use crate::services::quiet::KeptAlive;
use crate::services::{checked, job_id};
use shown::{Looking, News};

/// Watches that are open at a time.
const MAX_WATCHES: usize = 1024;
/// Views of one watch.
const MAX_VIEWS: usize = 64;
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A snapshot that is no older serves others too.
const FRESH: Duration = Duration::from_millis(500);
/// Answers that wait for a caller at most.
const WAITING: usize = 16;
/// Log lines of one answer.
const LINES_AT_ONCE: usize = 200;
const DEFAULT_TAIL: usize = 1000;
/// Limit of reading a history.
const HISTORY_DEADLINE: Duration = Duration::from_secs(30);
/// Hint to callers for whom there is no place.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// A watch ends after this without an error, and is asked for again: a caller that may not see any more what it saw is told then.
const WATCH_FOR: Duration = Duration::from_secs(600);

/// Views that follow what changes, and curves.
pub struct Views {
    sight: Sight,
    places: Arc<Semaphore>,
    tasks: Tasks,
}

/// What views are made of. Cheap to clone.
#[derive(Clone)]
pub struct Sight {
    pub engine: EngineHandle,
    pub logs: LogHub,
    pub relays: Relays,
    pub curves: CurveHub,
    newest: Arc<Mutex<Weak<TakenAt>>>,
}

/// A snapshot and when it was taken.
type TakenAt = (Instant, Arc<Snapshot>);
type Taken = Arc<TakenAt>;
type Outgoing = mpsc::Sender<Result<v1::WatchViewsResponse, Status>>;

impl Sight {
    pub fn new(engine: EngineHandle, logs: LogHub, relays: Relays, curves: CurveHub) -> Self {
        Self { engine, logs, relays, curves, newest: Arc::default() }
    }

    /// A snapshot that is fresh; kept by whoever watches, and by nobody else.
    async fn snapshot(&self) -> Result<Taken, Status> {
        let mut newest = self.newest.lock().await;
        if let Some(taken) = newest.upgrade().filter(|taken| taken.0.elapsed() < FRESH && self.engine.leads())
        {
            return Ok(taken);
        }
        let snapshot = self.engine.look(|reply| engine::LookRequest::Snapshot { reply }).await?;
        let taken = Arc::new((Instant::now(), snapshot));
        *newest = Arc::downgrade(&taken);
        Ok(taken)
    }

    /// Has the history of a stage read, if that is worth it now, and waits for it.
    async fn read_history(self, caller: Arc<Caller>, source: CurveSource) {
        let Some(file) = self.curves.wants(&source) else { return };
        let read = async {
            let busy = || status::exhausted("as many files are being read as may be at a time", RETRY_AFTER);
            let expected = self.relays.expect(caller.tenant.clone()).ok_or_else(busy)?;
            let (job, scope, read_id) = (source.stage.job.clone(), caller.scope(), expected.read_id.clone());
            let (path, name) = (file.path.clone(), HISTORY_FILE.to_owned());
            let wanted = |reply| engine::ObjectRequest::ReadFile { job, scope, path, name, read_id, reply };
            self.engine.ask(|reply| engine::Request::Objects(wanted(reply))).await?;
            let most = usize::try_from(file.size_bytes).unwrap_or(usize::MAX);
            let content = expected.collect(most, HISTORY_DEADLINE).await?;
            let parse = move || curves::read_history(&content, &file.sha256);
            tokio::task::spawn_blocking(parse)
                .await
                .map_err(|error| Status::internal(format!("read a history: {error}")))
        };
        let history = read.await.unwrap_or_else(|status: Status| Err(status.message().to_owned()));
        if let Err(why) = &history {
            tracing::info!(stage = %source.stage, why, "the history of a stage cannot be read; its curve has what was reported");
        }
        self.curves.keep(&source.stage, history);
    }
}

impl Views {
    pub fn new(sight: Sight, tasks: Tasks) -> Self {
        Self { sight, places: Arc::new(Semaphore::new(MAX_WATCHES)), tasks }
    }
}

#[tonic::async_trait]
impl ViewService for Views {
    type WatchViewsStream = KeptAlive<v1::WatchViewsResponse>;

    async fn watch_views(
        &self,
        request: Request<v1::WatchViewsRequest>,
    ) -> Result<Response<Self::WatchViewsStream>, Status> {
        let caller = Arc::new(caller_of(&request)?);
        let views = checked(check(request.into_inner().views))?;
        let place = Arc::clone(&self.places).try_acquire_owned();
        let place =
            place.map_err(|_| status::exhausted("as many watches are open as may be", RETRY_AFTER))?;
        // Who does not lead says so at once, and the caller goes elsewhere.
        let first = self.sight.snapshot().await?;
        let (out, answers) = mpsc::channel(WAITING);
        let watch = Watch {
            sight: self.sight.clone(),
            caller,
            views: views.into_iter().map(|(id, shows)| (id, Looking::new(shows))).collect(),
            out: out.clone(),
            besides: JoinSet::new(),
            _place: place,
        };
        let (stop, engine) = (self.tasks.stop_token(), self.sight.engine.clone());
        self.tasks.spawn(async move {
            let ended = tokio::select! {
                () = stop.cancelled() => Status::unavailable("the controller stops"),
                () = engine.deposed() => Status::unavailable("this controller leads no more"),
                () = out.closed() => return,
                () = tokio::time::sleep(WATCH_FOR) => return,
                ended = watch.run(first) => ended,
            };
            // One who takes nothing learns it by the end of the stream.
            let _ = out.try_send(Err(ended));
        });
        Ok(Response::new(KeptAlive::new(answers, SILENCE_LIMIT, |_| v1::WatchViewsResponse::default())))
    }

    async fn read_curves(
        &self,
        request: Request<v1::ReadCurvesRequest>,
    ) -> Result<Response<v1::ReadCurvesResponse>, Status> {
        let (caller, trail) = (Arc::new(caller_of(&request)?), trail_of(&request));
        let v1::ReadCurvesRequest { job_id: job, stage, max_points } = request.into_inner();
        let job = job_id(&job)?;
        trail.on("job", &job);
        let most = checked(curves::points_wanted(max_points))?;
        let taken = self.sight.snapshot().await?;
        let sources = checked(taken.1.curve_sources(&job, &stage, &caller.scope()))?;
        let mut found = Vec::new();
        for source in sources {
            self.sight.clone().read_history(caller.clone(), source.clone()).await;
            found.extend(self.sight.curves.curve(&source, most, None).map(|(curve, _)| curve));
        }
        Ok(Response::new(v1::ReadCurvesResponse { curves: found }))
    }
}

/// The views by their ids, if they can be watched together.
fn check(views: Vec<v1::View>) -> Result<Vec<(u32, Shows)>, RequestError> {
    if views.is_empty() || views.len() > MAX_VIEWS {
        return Err(RequestError::invalid(
            "views",
            format!("must be 1 to {MAX_VIEWS}, and are {}", views.len()),
        ));
    }
    let mut ids = BTreeSet::new();
    let mut known = Vec::new();
    for v1::View { view_id, shows } in views {
        if !ids.insert(view_id) {
            return Err(RequestError::invalid("views", format!("view_id {view_id} comes twice")));
        }
        let shows = shows.ok_or_else(|| {
            RequestError::invalid("views", format!("view {view_id} shows nothing that is known here"))
        })?;
        known.push((view_id, shows));
    }
    Ok(known)
}

/// One stream.
struct Watch {
    sight: Sight,
    caller: Arc<Caller>,
    views: Vec<(u32, Looking)>,
    out: Outgoing,
    /// Readers of logs and of histories; they end with this.
    besides: JoinSet<()>,
    _place: OwnedSemaphorePermit,
}

impl Watch {
    /// Looks and tells, until there is nothing to tell of, or nobody to tell.
    async fn run(mut self, first: Taken) -> Status {
        let mut taken = first;
        self.begin_logs().await;
        let mut every = tokio::time::interval(LOOK_EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first is at once.
        every.tick().await;
        loop {
            if self.tell(&taken.1).await.is_err() {
                return Status::cancelled("nobody watches any more");
            }
            while self.besides.try_join_next().is_some() {}
            every.tick().await;
            taken = match self.sight.snapshot().await {
                Ok(taken) => taken,
                Err(status) => return status,
            };
        }
    }

    /// Sends what each view has to tell of the snapshot.
    async fn tell(&mut self, snapshot: &Snapshot) -> Result<(), Gone> {
        let scope = self.caller.scope();
        for at in 0..self.views.len() {
            let Some((view_id, looking)) = self.views.get_mut(at) else { break };
            let view_id = *view_id;
            let (sight, caller) = (&self.sight, &self.caller);
            let look = || match may_look(caller, looking) {
                Ok(()) => looking.look(snapshot, &sight.curves, &scope),
                Err(refused) => looking.end(&refused),
            };
            let News { answers, histories } = sight.engine.in_turn(look).await;
            for source in histories {
                self.besides.spawn(self.sight.clone().read_history(self.caller.clone(), source));
            }
            for shown in answers {
                put(&self.out, view_id, shown).await?;
            }
        }
        Ok(())
    }

    /// Logs come by themselves.
    async fn begin_logs(&mut self) {
        for (view_id, looking) in &mut self.views {
            let Looking::Log(view) = looking else { continue };
            let began = begin_log(&self.sight, &self.caller, view).await;
            match began {
                Ok((reader, lines, tail, open)) => {
                    self.besides.spawn(reader.run(tail, open, true));
                    self.besides.spawn(hand_on(lines, self.out.clone(), *view_id));
                }
                Err(refused) => *looking = Looking::refused(&refused),
            }
        }
    }
}

/// Nobody takes what is sent.
struct Gone;

async fn put(out: &Outgoing, view_id: u32, shown: Shown) -> Result<(), Gone> {
    out.send(Ok(v1::WatchViewsResponse { view_id, shown: Some(shown) })).await.map_err(|_| Gone)
}

/// Nodes are for those who may list them.
fn may_look(caller: &Caller, looking: &Looking) -> Result<(), Status> {
    match looking {
        Looking::Nodes(_) => match rule_of("/crescendo.v1.NodeService/ListNodes") {
            Some(rule) => decide(rule, Some(caller.role))
                .map_err(|denied| Status::permission_denied(denied.to_string())),
            None => Err(Status::permission_denied("nodes are for nobody")),
        },
        _ => Ok(()),
    }
}

type Lines = mpsc::Receiver<Result<v1::ReadLogsResponse, Status>>;

async fn begin_log(
    sight: &Sight,
    caller: &Caller,
    view: &v1::LogView,
) -> Result<(LogReader, Lines, usize, bool), Status> {
    let job = job_id(&view.job_id)?;
    let tail = match view.tail_lines as usize {
        0 => DEFAULT_TAIL,
        lines if lines <= MAX_LINES => lines,
        _ => {
            return checked(Err(RequestError::invalid("tail_lines", format!("must be at most {MAX_LINES}"))));
        }
    };
    let scope: Scope = caller.scope();
    let (asked, of) = (job.clone(), scope.clone());
    let open = sight.engine.ask(|reply| engine::Request::JobExists { job: asked, scope: of, reply }).await?;
    let (engine, relays, tenant) = (sight.engine.clone(), sight.relays.clone(), caller.tenant.clone());
    let older = KeptLog { engine, relays, tenant, job: job.clone(), scope: scope.clone() };
    let (out, lines) = mpsc::channel(LINES_WAITING);
    let reader = LogReader { engine: sight.engine.clone(), logs: sight.logs.clone(), older, job, scope, out };
    Ok((reader, lines, tail, open))
}

/// Hands on log lines, as many at once as have come.
async fn hand_on(mut lines: Lines, out: Outgoing, view_id: u32) {
    let mut waiting = Vec::new();
    while lines.recv_many(&mut waiting, LINES_AT_ONCE).await > 0 {
        let mut shown = v1::LogShown::default();
        let mut failed = None;
        for answer in waiting.drain(..) {
            match answer {
                Ok(answer) => shown.lines.extend(answer.line),
                Err(status) => failed = Some(status),
            }
        }
        if !shown.lines.is_empty() && put(&out, view_id, Shown::Log(shown)).await.is_err() {
            return;
        }
        if let Some(status) = failed {
            // Whoever has gone does not miss it.
            let _ = put(&out, view_id, shown::failed(&status)).await;
        }
    }
}
