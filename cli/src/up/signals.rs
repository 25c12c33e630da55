//! What stops `up`: Ctrl-C, SIGTERM, and the end of standard input if that was asked for.

use std::io::Read as _;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use crate::failure::Failure;

pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    /// Closed with standard input.
    stdin: Option<oneshot::Receiver<()>>,
}

impl Signals {
    pub fn install(stdin: bool) -> Result<Signals, Failure> {
        let listen = |kind| signal(kind).map_err(Failure::from_error("listen for signals"));
        Ok(Signals {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
            stdin: stdin.then(watch_stdin),
        })
    }

    /// The next of them. The end of standard input comes once.
    pub async fn stop(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
            () = end_of(&mut self.stdin) => {}
        }
    }
}

/// Reads standard input to its end on a thread of its own, which may wait there until the process exits.
fn watch_stdin() -> oneshot::Receiver<()> {
    let (open, closed) = oneshot::channel();
    std::thread::spawn(move || {
        let mut ignored = [0; 256];
        while std::io::stdin().lock().read(&mut ignored).is_ok_and(|read| read > 0) {}
        drop(open);
    });
    closed
}

async fn end_of(stdin: &mut Option<oneshot::Receiver<()>>) {
    let Some(closed) = stdin else { return std::future::pending().await };
    // The sender sends nothing: it is dropped at the end.
    let _ = closed.await;
    *stdin = None;
}
