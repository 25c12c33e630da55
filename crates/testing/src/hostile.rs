//! Peers that do everything wrong on the wire, against a real process.
//!
//! ```text
//!   families(seed, calls) ─▶ Case = Step, Step, … ─▶ attack: raw TCP, many at a time ─▶ Victim: a process, its memory, its log
//! ```
//!
//! A case proves nothing by itself: what counts is that the process stays up within its bounds, that nothing changes
//! in it, and that others are served meanwhile. Tests look at that.

mod families;
mod victim;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

pub use families::{Calls, families};
pub use victim::Victim;

/// Limit of one write. A peer that reads no more has had enough.
const WRITE_TIMEOUT: Duration = Duration::from_secs(3);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// One thing that a hostile peer does.
#[derive(Clone, Debug)]
pub enum Step {
    Send(Vec<u8>),
    /// The same bytes so many times.
    Repeat(Vec<u8>, usize),
    /// Byte for byte, with a pause after each.
    Drip(Vec<u8>, Duration),
    /// Takes what comes, until the other side closes or the time is over.
    Read(Duration),
    /// Neither reads nor writes.
    Hold(Duration),
}

/// What one hostile connection does, in order.
#[derive(Clone, Debug)]
pub struct Case {
    pub family: &'static str,
    pub name: String,
    pub steps: Vec<Step>,
}

/// How connections ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    pub cases: usize,
    /// Connections that the process closed.
    pub closed: usize,
}

/// Does all cases, so many at a time, each on a connection of its own.
pub async fn attack(address: &str, cases: Vec<Case>, at_a_time: usize) -> Outcome {
    let permits = Arc::new(Semaphore::new(at_a_time));
    let mut running = JoinSet::new();
    let mut outcome = Outcome { cases: cases.len(), closed: 0 };
    for case in cases {
        let (permits, address) = (permits.clone(), address.to_owned());
        running.spawn(async move {
            // Never closed.
            let _permit = permits.acquire_owned().await;
            act(&address, &case).await
        });
    }
    while let Some(closed) = running.join_next().await {
        outcome.closed += usize::from(closed.unwrap_or_default());
    }
    outcome
}

/// Does one case; true if the other side ended the connection.
async fn act(address: &str, case: &Case) -> bool {
    let connected = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
    let Ok(Ok(mut stream)) = connected else { return false };
    for step in &case.steps {
        let closed = match step {
            Step::Send(bytes) => write(&mut stream, bytes).await,
            Step::Repeat(bytes, times) => {
                let mut closed = false;
                for _ in 0..*times {
                    closed = write(&mut stream, bytes).await;
                    if closed {
                        break;
                    }
                }
                closed
            }
            Step::Drip(bytes, pause) => {
                let mut closed = false;
                for byte in bytes {
                    closed = write(&mut stream, &[*byte]).await;
                    if closed {
                        break;
                    }
                    tokio::time::sleep(*pause).await;
                }
                closed
            }
            Step::Read(time) => timeout(*time, read_to_end(&mut stream)).await.is_ok(),
            Step::Hold(time) => {
                tokio::time::sleep(*time).await;
                false
            }
        };
        if closed {
            return true;
        }
    }
    false
}

/// True if no more can be written.
async fn write(stream: &mut TcpStream, bytes: &[u8]) -> bool {
    !matches!(timeout(WRITE_TIMEOUT, stream.write_all(bytes)).await, Ok(Ok(())))
}

async fn read_to_end(stream: &mut TcpStream) {
    let mut buffer = [0; 16 << 10];
    while stream.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
}

/// Connections that say nothing, or no more than `opening`, for as long as they are kept.
pub async fn idle(address: &str, count: usize, opening: &[u8]) -> Vec<TcpStream> {
    let mut idle = Vec::with_capacity(count);
    for _ in 0..count {
        let Ok(Ok(mut stream)) = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await else {
            continue;
        };
        // Refused ones are idle too.
        let _ = stream.write_all(opening).await;
        idle.push(stream);
    }
    idle
}

/// Calls that are begun and never finished: `count` streams on one connection, whose messages do not come.
pub fn unfinished(path: &str, count: u32) -> Vec<u8> {
    let mut bytes = wire::opening();
    for n in 0..count {
        bytes.extend(wire::headers(2 * n + 1, path, false));
        // A message of 100 bytes is announced, one comes.
        bytes.extend(wire::frame(wire::DATA, 0, 2 * n + 1, &[0, 0, 0, 0, 100, 10]));
    }
    bytes
}
