//! Campaigns for leadership, and runs the engine while it is held.

use std::sync::Arc;
use std::time::Duration;

use crescendo_core::error::RequestError;
use crescendo_node::objects::with_causes;
use crescendo_node::runtime::supervise::{Drain, Tasks};
use crescendo_proto::status;
use crescendo_store::StoreError;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::beside::beside;
use crate::engine::{self, End, EngineDeps, EngineError, Later, LookRequest, Reply, Request};

/// Name of the leadership in the store.
const NAME: &str = "controller";
/// A campaign is begun again after this, to learn who leads.
const CAMPAIGN_WAIT: Duration = Duration::from_secs(2);
/// Wait after a campaign that failed.
const PAUSE: Duration = Duration::from_millis(500);
/// Time that others have to take over from one that could not read the state.
const AFTER_RESIGNING: Duration = Duration::from_secs(3);
/// Limit of handing a request to the engine, and of its answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(15);
/// Answers that are worked out at a time; others wait for their turn.
const LOOKS: usize = 4;
/// Nodes that are asked to stop at the same time have said so within this.
const NODES_SAY: Duration = Duration::from_millis(500);
/// Between looks whether they have left.
const NODES_LOOK: Duration = Duration::from_millis(100);
/// Hint to callers that find the engine's queue full.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What this controller is at the moment.
#[derive(Clone, Debug)]
pub enum Role {
    /// `leader` is the address of the one that leads, as far as it is known.
    ///
    /// `trouble` is why nobody can be elected, if so.
    Standby {
        leader: Option<String>,
        trouble: Option<String>,
    },
    Leading {
        requests: mpsc::Sender<Request>,
    },
}

/// How services reach the engine.
#[derive(Clone, Debug)]
pub struct EngineHandle {
    role: watch::Receiver<Role>,
    /// Turns of those that work out an answer.
    looks: Arc<Semaphore>,
}

fn no_answer() -> Status {
    let what = format!("the controller did not answer within {} s", ASK_TIMEOUT.as_secs());
    status::refused(&RequestError::Full { what, retry_after: RETRY_AFTER })
}

impl EngineHandle {
    pub fn new(role: watch::Receiver<Role>) -> Self {
        Self { role, looks: Arc::new(Semaphore::new(LOOKS)) }
    }

    /// What this controller is at the moment.
    pub fn role(&self) -> Role {
        self.role.borrow().clone()
    }

    pub fn leads(&self) -> bool {
        matches!(&*self.role.borrow(), Role::Leading { .. })
    }

    /// Asks the engine, and waits for its answer.
    pub async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, Status> {
        let requests = self.requests()?;
        let (reply, answer) = oneshot::channel();
        let exchange = async {
            requests.send(request(reply)).await.map_err(|_| self.not_leading())?;
            answer.await.unwrap_or(Err(EngineError::NotLeading)).map_err(|error| self.refusal(error))
        };
        tokio::time::timeout(ASK_TIMEOUT, exchange).await.unwrap_or_else(|_| Err(no_answer()))
    }

    /// Asks for what can be worked out beside the engine, and does that here.
    pub async fn look<T>(&self, request: impl FnOnce(Reply<Later<T>>) -> LookRequest) -> Result<T, Status> {
        let later = self.ask(|reply| Request::Look(request(reply))).await?;
        let turn = tokio::time::timeout(ASK_TIMEOUT, self.looks.acquire()).await;
        let _turn = turn.map_err(|_| no_answer())?;
        beside(|| later.answer()).map_err(|error| self.refusal(error))
    }

    /// Works something out beside the engine, in the turn of those who look.
    pub async fn in_turn<T>(&self, work: impl FnOnce() -> T) -> T {
        // Nobody closes it; whoever comes waits for those before.
        let _turn = self.looks.acquire().await;
        beside(work)
    }

    fn refusal(&self, error: EngineError) -> Status {
        match error {
            EngineError::RequestError(refused) => status::refused(&refused),
            EngineError::Reloading | EngineError::StoreRefuses { .. } => {
                Status::unavailable(error.to_string())
            }
            EngineError::NotLeading => self.not_leading(),
        }
    }

    /// Tells the engine something that has no answer.
    pub async fn tell(&self, request: Request) -> Result<(), Status> {
        let requests = self.requests()?;
        match tokio::time::timeout(ASK_TIMEOUT, requests.send(request)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(self.not_leading()),
            Err(_) => Err(Status::unavailable("the controller takes no requests")),
        }
    }

    /// Waits until this controller leads no more.
    pub async fn deposed(&self) {
        let mut role = self.role.clone();
        // One that nobody keeps up to date any more leads nothing.
        let _ = role.wait_for(|role| !matches!(role, Role::Leading { .. })).await;
    }

    /// Ends when this controller leads no more, and says why.
    pub fn ends(&self, tasks: &Tasks) -> impl Future<Output = Status> + Send + 'static {
        let (stop, engine) = (tasks.stop_token(), self.clone());
        async move {
            tokio::select! {
                () = stop.cancelled() => Status::unavailable("the controller stops"),
                () = engine.deposed() => Status::unavailable("this controller leads no more"),
            }
        }
    }

    /// Does something as the leader. None if this controller does not lead, or leads no more before it is done.
    pub async fn as_leader<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        if !self.leads() {
            return None;
        }
        tokio::select! {
            () = self.deposed() => None,
            done = work => Some(done),
        }
    }

    fn requests(&self) -> Result<mpsc::Sender<Request>, Status> {
        match &*self.role.borrow() {
            Role::Leading { requests } => Ok(requests.clone()),
            Role::Standby { .. } => Err(self.not_leading()),
        }
    }

    fn not_leading(&self) -> Status {
        match &*self.role.borrow() {
            Role::Standby { leader: None, trouble: Some(trouble) } => {
                Status::unavailable(format!("no controller can be elected: {trouble}"))
            }
            Role::Standby { leader, .. } => status::not_leader(leader.as_deref()),
            Role::Leading { .. } => Status::unavailable("this controller has just stopped to lead"),
        }
    }
}

/// Once the process is asked to stop: stays as long as it leads nodes that were asked to stop with it, so that what they save is
/// registered.
pub async fn stay_for_nodes(engine: EngineHandle, drain: Drain) {
    drain.asked().cancelled().await;
    if matches!(engine.role(), Role::Leading { .. }) {
        tokio::time::sleep(NODES_SAY).await;
        while matches!(engine.ask(|reply| Request::HandsOver { reply }).await, Ok(true)) {
            tokio::time::sleep(NODES_LOOK).await;
        }
    }
    drain.finish();
}

/// Identity in the store: where the leader is reached, and which process it is.
pub fn identity(address: &str, controller_id: &str) -> String {
    format!("{address}/{controller_id}")
}

fn address(identity: &str) -> Option<String> {
    identity.split_once('/').map(|(address, _)| address.to_owned())
}

/// Campaigns and leads, over and over, until `stop`.
pub async fn run(around: EngineDeps, identity: String, role: watch::Sender<Role>, stop: CancellationToken) {
    let metrics = around.metrics.clone();
    while !stop.is_cancelled() {
        metrics.stand_by();
        let campaign = around.store.campaign(NAME, &identity, around.config.leader_lease, CAMPAIGN_WAIT);
        let outcome = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            outcome = campaign => outcome,
        };
        let leadership = match outcome {
            Ok(leadership) => leadership,
            Err(StoreError::NotElected { leader, .. }) => {
                let leader = leader.as_deref().and_then(address);
                role.send_replace(Role::Standby { leader, trouble: None });
                continue;
            }
            Err(error) => {
                let trouble = Some(with_causes(&error));
                let before = role.send_replace(Role::Standby { leader: None, trouble: trouble.clone() });
                // Said once, not at each try.
                if !matches!(before, Role::Standby { trouble: before, .. } if before == trouble) {
                    tracing::warn!(error = trouble, "cannot campaign for leadership; trying again");
                }
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(PAUSE) => continue,
                }
            }
        };
        tracing::info!(identity, "elected; reading the state");
        let (requests, mut receiver) = mpsc::channel(engine::QUEUE);
        let ready = || {
            tracing::info!(identity, "leading");
            metrics.lead();
            role.send_replace(Role::Leading { requests });
        };
        let end = engine::run(around.clone(), &leadership, &mut receiver, ready, &stop).await;
        metrics.stand_by();
        // Later requests are refused before the leadership is given up.
        role.send_replace(Role::Standby { leader: None, trouble: None });
        match end {
            End::Stopped => {
                leadership.resign().await;
                return;
            }
            End::CannotLoad => {
                tracing::error!(
                    identity,
                    "the state cannot be read; the lead is given up for another controller to try"
                );
                leadership.resign().await;
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(AFTER_RESIGNING) => {}
                }
            }
            End::Deposed => tracing::warn!(identity, "leadership is lost; another controller takes over"),
        }
    }
}

#[cfg(test)]
mod tests {
    use crescendo_core::access::Scope;
    use tokio::task::JoinSet;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn what_takes_long_to_work_out_holds_up_nobody() {
        let (requests, mut engine) = mpsc::channel(4);
        let (_leading, role) = watch::channel(Role::Leading { requests });
        let handle = EngineHandle::new(role);
        let (begin, begun) = oneshot::channel();
        let (end, ended) = std::sync::mpsc::channel();
        let (mut engines, mut looks) = (JoinSet::new(), JoinSet::new());
        engines.spawn(async move {
            let mut work = Some((begin, ended));
            while let Some(request) = engine.recv().await {
                match request {
                    Request::Look(LookRequest::ListUsage { reply, .. }) => {
                        let (begin, ended) = work.take().expect("one look");
                        let later = Later::new(move || {
                            let _ = begin.send(());
                            ended.recv_timeout(Duration::from_secs(60)).expect("the other was answered");
                            Ok(Vec::new())
                        });
                        let _ = reply.send(Ok(later));
                    }
                    Request::HandsOver { reply } => {
                        let _ = reply.send(Ok(true));
                    }
                    _ => panic!("nobody asks for that"),
                }
            }
        });
        let looking = handle.clone();
        looks.spawn(async move {
            looking.look(|reply| LookRequest::ListUsage { scope: Scope::Everything, reply }).await
        });
        begun.await.expect("the look begins");
        assert!(handle.ask(|reply| Request::HandsOver { reply }).await.expect("an answer"));
        end.send(()).expect("it waits");
        let looked = looks.join_next().await.expect("a look").expect("no panic");
        assert!(looked.expect("an answer").is_empty());
    }
}
