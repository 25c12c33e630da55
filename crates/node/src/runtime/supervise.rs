//! Tasks that end with their process, and a process that ends with its critical tasks. One that has something to hand
//! over does so before it stops: see [`Drain`].

use std::fmt::Display;
use std::future::Future;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

#[derive(Debug, thiserror::Error)]
pub enum Ended {
    #[error("cannot listen for signals")]
    Signals(#[source] std::io::Error),
    #[error("{task} ended: {reason}")]
    Task { task: &'static str, reason: String },
    #[error("tasks did not stop within {grace:?}")]
    Slow { grace: Duration },
}

/// The tasks of a process. All share one stop token: cancelled by a signal, by the end of a critical task, or by
/// whoever holds a clone.
#[derive(Clone, Debug)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
    ended: mpsc::Sender<Ended>,
}

/// The orderly way out of a process that others rely on: asked for by the first SIGTERM, over when it says so or its time
/// is. Clones are the same.
#[derive(Clone, Debug)]
pub struct Drain {
    /// Cancelled when the process is to hand over.
    asked: CancellationToken,
    /// Cancelled when it has.
    done: CancellationToken,
    within: Duration,
}

impl Drain {
    pub fn new(within: Duration) -> Self {
        Self { asked: CancellationToken::new(), done: CancellationToken::new(), within }
    }

    /// Cancelled when the process is to hand over what it works on.
    pub fn asked(&self) -> CancellationToken {
        self.asked.clone()
    }

    /// All is handed over: the process may stop.
    pub fn finish(&self) {
        self.done.cancel();
    }

    /// Resolves once all is handed over, or its time is over.
    pub async fn over(&self) {
        let _ = tokio::time::timeout(self.within, self.done.cancelled()).await;
    }

    /// The most that the hand-over may take.
    pub fn within(&self) -> Duration {
        self.within
    }
}

/// Waits for the end of the process. Made together with [`Tasks`], kept by `main`.
#[derive(Debug)]
pub struct Supervisor {
    tasks: Tasks,
    ended: mpsc::Receiver<Ended>,
    drain: Option<Drain>,
}

impl Tasks {
    pub fn new() -> (Self, Supervisor) {
        // One place: only the first end decides how the process ends.
        let (sender, ended) = mpsc::channel(1);
        let tasks = Self { tracker: TaskTracker::new(), stop: CancellationToken::new(), ended: sender };
        (tasks.clone(), Supervisor { tasks, ended, drain: None })
    }

    /// Cancelled when the process is to stop.
    pub fn stop_token(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Runs a task that the process can live without once it is over. It has to watch [`Tasks::stop_token`].
    pub fn spawn<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tracker.spawn(task);
    }

    /// Runs a task that the process cannot live without: if it ends before the stop, or panics, the process stops.
    pub fn spawn_critical<F, E>(&self, name: &'static str, task: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Display + Send + 'static,
    {
        let (stop, ended) = (self.stop.clone(), self.ended.clone());
        let inner = self.tracker.spawn(task);
        self.tracker.spawn(async move {
            let reason = match inner.await {
                Ok(Ok(())) if stop.is_cancelled() => return,
                Ok(Ok(())) => "it returned".to_owned(),
                // Alternate form: an anyhow error prints its causes with it.
                Ok(Err(error)) => format!("{error:#}"),
                Err(join) => format!("it panicked: {join}"),
            };
            // Full: another task ended first, and its end is the one that counts.
            let _ = ended.try_send(Ended::Task { task: name, reason });
            stop.cancel();
        });
    }
}

impl Supervisor {
    /// A first SIGTERM asks for this hand-over before it stops the process.
    #[must_use]
    pub fn draining(self, drain: Drain) -> Self {
        Self { drain: Some(drain), ..self }
    }

    /// Waits for SIGTERM, SIGINT, the stop token or the end of a critical task, then stops all tasks and gives them
    /// `grace` to end.
    pub async fn run(mut self, grace: Duration) -> Result<(), Ended> {
        let mut terminate = signal(SignalKind::terminate()).map_err(Ended::Signals)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(Ended::Signals)?;
        tokio::select! {
            _ = terminate.recv() => match self.drain.take().filter(|drain| !drain.within.is_zero()) {
                None => tracing::info!("stopping on SIGTERM"),
                Some(drain) => {
                    tracing::info!(within = ?drain.within, "handing over on SIGTERM");
                    drain.asked.cancel();
                    tokio::select! {
                        () = drain.done.cancelled() => tracing::info!("all is handed over, stopping"),
                        () = tokio::time::sleep(drain.within) => {
                            tracing::warn!(within = ?drain.within, "not all is handed over in time, stopping");
                        }
                        _ = terminate.recv() => tracing::warn!("stopping at once on a second SIGTERM"),
                        _ = interrupt.recv() => tracing::warn!("stopping at once on SIGINT"),
                        () = self.tasks.stop.cancelled() => {}
                    }
                }
            },
            _ = interrupt.recv() => tracing::info!("stopping on SIGINT"),
            () = self.tasks.stop.cancelled() => {}
        }
        self.tasks.stop.cancel();
        self.tasks.tracker.close();
        let all_ended = tokio::time::timeout(grace, self.tasks.tracker.wait()).await.is_ok();
        match self.ended.try_recv() {
            Ok(ended) => Err(ended),
            Err(_) if !all_ended => Err(Ended::Slow { grace }),
            Err(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_critical_end_stops_the_rest() {
        let (tasks, supervisor) = Tasks::new();
        let stop = tasks.stop_token();
        tasks.spawn(async move { stop.cancelled().await });
        tasks.spawn_critical("reader", async { Err::<(), _>("disk gone") });
        let ended = supervisor.run(Duration::from_secs(5)).await.unwrap_err();
        assert_eq!(ended.to_string(), "reader ended: disk gone");
    }

    #[tokio::test]
    async fn a_panic_is_an_end() {
        let (tasks, supervisor) = Tasks::new();
        tasks.spawn_critical("reader", async {
            assert!(std::hint::black_box(false), "as the test wants");
            Ok::<(), String>(())
        });
        let ended = supervisor.run(Duration::from_secs(5)).await.unwrap_err();
        assert!(ended.to_string().starts_with("reader ended: it panicked"), "{ended}");
    }

    #[tokio::test]
    async fn a_stop_that_was_asked_for_is_clean() {
        let (tasks, supervisor) = Tasks::new();
        let stop = tasks.stop_token();
        let watched = stop.clone();
        tasks.spawn_critical("server", async move {
            watched.cancelled().await;
            Ok::<(), String>(())
        });
        stop.cancel();
        supervisor.run(Duration::from_secs(5)).await.unwrap();
    }
}
