//! A named thread that owns what must not leave it, such as a network.

use std::panic::AssertUnwindSafe;
use tokio::sync::{mpsc, oneshot};

type Job<S> = Box<dyn FnOnce(&mut S) + Send>;

/// A handle on a thread with a state of its own. Jobs run one after the other; the thread ends with its last handle.
#[derive(Debug)]
pub struct Worker<S> {
    jobs: mpsc::Sender<Job<S>>,
}

impl<S> Clone for Worker<S> {
    fn clone(&self) -> Self {
        Worker { jobs: self.jobs.clone() }
    }
}

/// The job was not done: it panicked, or the thread has ended.
#[derive(Debug, thiserror::Error)]
#[error("the {thread} thread gave the work up")]
pub struct Dropped {
    thread: &'static str,
}

impl<S: 'static> Worker<S> {
    /// Starts a thread; `state` is made on it. At most `queue` jobs wait.
    pub fn start(
        name: &'static str,
        queue: usize,
        state: impl FnOnce() -> S + Send + 'static,
    ) -> std::io::Result<Self> {
        let (jobs, mut waiting) = mpsc::channel::<Job<S>>(queue.max(1));
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let mut state = state();
            while let Some(job) = waiting.blocking_recv() {
                // A job that panics loses its own answer and nothing else.
                if std::panic::catch_unwind(AssertUnwindSafe(|| job(&mut state))).is_err() {
                    tracing::error!(thread = name, "a piece of work panicked");
                }
            }
        })?;
        Ok(Worker { jobs })
    }

    /// Does `work` on the thread and waits for its answer. Dropping the wait does not stop work that has begun.
    pub async fn run<T: Send + 'static>(
        &self,
        thread: &'static str,
        work: impl FnOnce(&mut S) -> T + Send + 'static,
    ) -> Result<T, Dropped> {
        let (job, answered) = Self::job(work);
        self.jobs.send(job).await.map_err(|_| Dropped { thread })?;
        answered.await.map_err(|_| Dropped { thread })
    }

    /// [`Worker::run`] for a thread that is none of the runtime's, and not this worker's own.
    pub fn run_blocking<T: Send + 'static>(
        &self,
        thread: &'static str,
        work: impl FnOnce(&mut S) -> T + Send + 'static,
    ) -> Result<T, Dropped> {
        let (job, answered) = Self::job(work);
        self.jobs.blocking_send(job).map_err(|_| Dropped { thread })?;
        answered.blocking_recv().map_err(|_| Dropped { thread })
    }

    fn job<T: Send + 'static>(
        work: impl FnOnce(&mut S) -> T + Send + 'static,
    ) -> (Job<S>, oneshot::Receiver<T>) {
        let (answer, answered) = oneshot::channel();
        let job: Job<S> = Box::new(move |state| {
            // Nobody waits any more if this fails.
            let _ = answer.send(work(state));
        });
        (job, answered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn jobs_share_the_state_and_a_panic_costs_only_its_own() {
        let worker = Worker::start("counting", 4, || 0u32).expect("start a thread");
        for _ in 0..3 {
            worker.run("counting", |n| *n += 1).await.expect("done");
        }
        let panicked = worker.run("counting", |_| panic!("as the test wants")).await;
        assert_eq!(panicked.expect_err("it panicked").to_string(), "the counting thread gave the work up");
        assert_eq!(worker.run("counting", |n| *n).await.expect("done"), 3);
    }
}
