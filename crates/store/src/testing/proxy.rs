//! A TCP proxy that can be told to fail.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What a [`FaultyProxy`] does with its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// Passes bytes both ways.
    Passes,
    /// Passes bytes to the server, and drops the server's answers. A connection that lost an answer is closed when
    /// traffic passes again.
    LosesAnswers,
    /// Closes open connections, and new ones as soon as they are made.
    Cut,
}

/// What every connection goes by.
#[derive(Clone, Copy, Debug)]
struct Switch {
    traffic: Traffic,
    /// How often all was cut: a connection from before ends, even if it looks again only when traffic passes once more.
    cuts: u64,
}

/// A TCP proxy on a free loopback port, in front of one address. Stops when dropped.
#[derive(Debug)]
pub struct FaultyProxy {
    address: String,
    switch: watch::Sender<Switch>,
    _accepting: JoinSet<()>,
}

impl FaultyProxy {
    /// Starts a proxy in front of `target` (host and port).
    pub async fn start(target: String) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let (switch, receiver) = watch::channel(Switch { traffic: Traffic::Passes, cuts: 0 });
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, target, receiver));
        Ok(Self { address, switch, _accepting: accepting })
    }

    /// Its URL for clients.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Changes what happens to all connections, from now on: nothing passes a cut that reaches this proxy after it.
    pub fn set(&self, traffic: Traffic) {
        let cuts = u64::from(traffic == Traffic::Cut);
        self.switch.send_modify(|switch| *switch = Switch { traffic, cuts: switch.cuts + cuts });
    }
}

async fn accept(listener: TcpListener, target: String, switch: watch::Receiver<Switch>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        let Switch { traffic, cuts } = *switch.borrow();
        if traffic == Traffic::Cut {
            continue;
        }
        if let Ok(server) = TcpStream::connect(&target).await {
            connections.spawn(forward(client, server, switch.clone(), cuts));
        }
    }
}

/// Runs until either side, or the proxy, closes the connection. An I/O error is the end of it like any other.
async fn forward(client: TcpStream, server: TcpStream, mut switch: watch::Receiver<Switch>, cuts: u64) {
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let of_requests = switch.clone();
    let of_answers = switch.clone();
    tokio::select! {
        // Looked at first, whatever woke this up.
        biased;
        _ = switch.wait_for(|switch| switch.cuts != cuts) => {}
        _ = pass_requests(from_client, to_server, of_requests, cuts) => {}
        _ = pass_answers(from_server, to_client, of_answers, cuts) => {}
    }
}

async fn pass_requests(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    switch: watch::Receiver<Switch>,
    cuts: u64,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    while let Some(length) = read_before_cut(&mut from, &mut buffer, &switch, cuts).await? {
        to.write_all(&buffer[..length]).await?;
    }
    Ok(())
}

async fn pass_answers(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut switch: watch::Receiver<Switch>,
    cuts: u64,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    while let Some(length) = read_before_cut(&mut from, &mut buffer, &switch, cuts).await? {
        if switch.borrow().traffic == Traffic::LosesAnswers {
            // Bytes are missing from now on: there is no way back for this connection.
            let mut nowhere = tokio::io::sink();
            tokio::select! {
                _ = switch.wait_for(|switch| switch.traffic == Traffic::Passes) => return Ok(()),
                drained = tokio::io::copy(&mut from, &mut nowhere) => return drained.map(|_| ()),
            }
        }
        to.write_all(&buffer[..length]).await?;
    }
    Ok(())
}

/// The bytes read next; none at the end, and none where all was cut. A task that was about to read when the cut came reads on
/// before it waits again, and what it reads may be from after the cut: so the switch is looked at once more after each read.
async fn read_before_cut(
    from: &mut OwnedReadHalf,
    buffer: &mut [u8],
    switch: &watch::Receiver<Switch>,
    cuts: u64,
) -> io::Result<Option<usize>> {
    let length = from.read(buffer).await?;
    Ok((length > 0 && switch.borrow().cuts == cuts).then_some(length))
}

const BUFFER_BYTES: usize = 16 << 10;
