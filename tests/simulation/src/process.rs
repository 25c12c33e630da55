//! Tasks that are killed, and stopped in their tracks, together: what a process is here.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

#[derive(Debug, Default)]
struct GateState {
    /// Times that it was closed and not opened again.
    closed: u32,
    waiting: Vec<Waker>,
}

/// Whether the tasks behind it run. A closed one is as SIGSTOP: time goes on, and what was due meanwhile happens at once
/// when it opens. Opened as often as it was closed.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<Mutex<GateState>>);

impl Gate {
    pub fn close(&self) {
        self.lock().closed += 1;
    }

    pub fn open(&self) {
        let waiting = {
            let mut state = self.lock();
            state.closed = state.closed.saturating_sub(1);
            if state.closed > 0 {
                return;
            }
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    pub fn is_closed(&self) -> bool {
        self.lock().closed > 0
    }

    fn lock(&self) -> MutexGuard<'_, GateState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Gated<F> {
    gate: Gate,
    inner: Pin<Box<F>>,
}

impl<F: Future> Future for Gated<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        {
            let mut state = self.gate.lock();
            if state.closed > 0 {
                state.waiting.push(context.waker().clone());
                return Poll::Pending;
            }
        }
        self.inner.as_mut().poll(context)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Process {
    tasks: Mutex<JoinSet<()>>,
    pub gate: Gate,
    /// Cancelled once it is dead: its connections break.
    pub dead: CancellationToken,
}

impl Process {
    /// Runs a task while the process lives and its gate is open.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn_ungated(Gated { gate: self.gate.clone(), inner: Box::pin(task) });
    }

    /// Runs a task while the process lives, even if it is stopped: for what the system does for it.
    pub fn spawn_ungated(&self, task: impl Future<Output = ()> + Send + 'static) {
        if self.dead.is_cancelled() {
            return;
        }
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    /// As SIGKILL: nothing is said to anyone.
    pub fn kill(&self) {
        self.dead.cancel();
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }
}
