//! Files on their way from a curator to a person: each a bounded channel with a pace, beside the engine.
//!
//! ```text
//!   person ◀─ ReadCheckpointFile ─ forward ◀─ channel ◀─ SendObject ─ curator ◀─ ReadObject ─ engine
//! ```
//!
//! Back-pressure goes the whole way: a person who reads slowly fills the channel, and the curator's stream waits.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crescendo_core::ids::Tenant;
use crescendo_node::runtime::random;
use crescendo_proto::v1;
use crescendo_proto::v1::read_checkpoint_file_response::Message as Part;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tonic::Status;
use tonic::codegen::Bytes;

/// Files that are read at a time.
const MOST_READS: usize = 8;
/// Those of one tenant's callers: they leave room for others.
const MOST_OF_ONE_TENANT: usize = 4;
/// Pieces that wait between the two streams of one file.
const WAITING_CHUNKS: usize = 2;
/// Largest piece.
pub const MAX_CHUNK_BYTES: usize = 1 << 20;
/// Bytes a second, of all files together: the controller has other things to do.
const BYTES_PER_SEC: u64 = 64 << 20;
/// Limit of the wait until the curator begins to send.
const BEGIN_DEADLINE: Duration = Duration::from_secs(15);
/// Limit of the wait until the reader has taken why it ends early.
const LAST_WORD_DEADLINE: Duration = Duration::from_secs(5);
/// Limit of the wait for the next piece, and of the wait until the reader takes one.
const PIECE_DEADLINE: Duration = Duration::from_secs(60);
/// Limit of one file.
const FILE_DEADLINE: Duration = Duration::from_secs(3 * 3600);

/// A piece, or why there is none.
type Piece = Result<Bytes, Status>;
/// What goes to the reader.
pub type Outgoing = mpsc::Sender<Result<v1::ReadCheckpointFileResponse, Status>>;

/// All files that are on their way. Cheap to clone.
#[derive(Clone)]
pub struct Relays {
    places: Arc<Mutex<Places>>,
    pace: Arc<Mutex<Pace>>,
}

#[derive(Default)]
struct Places {
    /// Those that a curator was asked for and has not begun to send, by read id.
    asked: BTreeMap<String, Asked>,
    /// All that are on their way, by the tenant of whoever reads; `None` for callers without one.
    open: BTreeMap<Option<Tenant>, usize>,
}

struct Asked {
    pieces: mpsc::Sender<Piece>,
    begun: oneshot::Sender<()>,
}

/// One file that is expected. Its place is free again when this goes.
pub struct Expected {
    relays: Relays,
    /// Known to the curator alone that was asked.
    pub read_id: String,
    pieces: mpsc::Receiver<Piece>,
    begun: oneshot::Receiver<()>,
    tenant: Option<Tenant>,
}

impl Default for Relays {
    fn default() -> Self {
        Self {
            places: Arc::default(),
            pace: Arc::new(Mutex::new(Pace { bytes_per_sec: BYTES_PER_SEC, free_at: None })),
        }
    }
}

impl Relays {
    /// A place for one file that a caller of this tenant reads; none if all are taken, or those of the tenant.
    pub fn expect(&self, tenant: Option<Tenant>) -> Option<Expected> {
        let mut places = self.places();
        let of_tenant = places.open.get(&tenant).copied().unwrap_or_default();
        if of_tenant >= MOST_OF_ONE_TENANT || places.open.values().sum::<usize>() >= MOST_READS {
            return None;
        }
        places.open.insert(tenant.clone(), of_tenant + 1);
        let read_id = random::id();
        let (sender, pieces) = mpsc::channel(WAITING_CHUNKS);
        let (begin, begun) = oneshot::channel();
        places.asked.insert(read_id.clone(), Asked { pieces: sender, begun: begin });
        Some(Expected { relays: self.clone(), read_id, pieces, begun, tenant })
    }

    /// Where the file goes that was asked for with this id. Once: what is sent a second time goes nowhere.
    pub fn begin(&self, read_id: &str) -> Option<mpsc::Sender<Piece>> {
        let Asked { pieces, begun } = self.places().asked.remove(read_id)?;
        // One that waits no more finds the pieces' channel closed.
        let _ = begun.send(());
        Some(pieces)
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        // A panic elsewhere leaves nothing half done here.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_for(&self, bytes: usize) -> Duration {
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        pace.take(bytes as u64, Instant::now())
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        let mut places = self.relays.places();
        places.asked.remove(&self.read_id);
        if let Some(open) = places.open.get_mut(&self.tenant) {
            *open = open.saturating_sub(1);
        }
        places.open.retain(|_, open| *open > 0);
    }
}

impl Expected {
    /// Hands the file on until all of it has gone, or why it does not come: the curator's reason, or that of `ends`. Ends
    /// early when nobody reads it any more.
    pub async fn forward(
        mut self,
        file: v1::CheckpointFile,
        to: Outgoing,
        ends: impl Future<Output = Status>,
    ) {
        let size_bytes = file.size_bytes;
        let sending = async {
            put(&to, Part::File(file)).await?;
            self.pieces(size_bytes, &to).await
        };
        let status = tokio::select! {
            () = to.closed() => return,
            status = ends => status,
            outcome = tokio::time::timeout(FILE_DEADLINE, sending) => match outcome {
                Ok(Ok(())) => return,
                Ok(Err(status)) => status,
                Err(_) => Status::deadline_exceeded(format!("the file did not come within {FILE_DEADLINE:?}")),
            },
        };
        tracing::warn!(%status, "a file did not reach its reader");
        // The curator stops at once, and the place is free.
        drop(self);
        // One that takes nothing misses the reason, and sees by the size that the file is not whole.
        let _ = tokio::time::timeout(LAST_WORD_DEADLINE, to.send(Err(status))).await;
    }

    /// All of it, at most `most_bytes`, or why it does not come.
    pub async fn collect(mut self, most_bytes: usize, within: Duration) -> Result<Vec<u8>, Status> {
        let collecting = async {
            (&mut self.begun).await.map_err(|_| gone())?;
            let mut bytes = Vec::new();
            while let Some(piece) = self.pieces.recv().await {
                let piece = piece?;
                if bytes.len() + piece.len() > most_bytes {
                    return Err(Status::data_loss(format!("it is larger than {most_bytes} bytes")));
                }
                tokio::time::sleep(self.relays.wait_for(piece.len())).await;
                bytes.extend_from_slice(&piece);
            }
            Ok(bytes)
        };
        tokio::time::timeout(within, collecting).await.unwrap_or_else(|_| {
            Err(Status::deadline_exceeded(format!("the curator has not sent it within {within:?}")))
        })
    }

    async fn pieces(&mut self, size_bytes: u64, to: &Outgoing) -> Result<(), Status> {
        tokio::time::timeout(BEGIN_DEADLINE, &mut self.begun)
            .await
            .map_err(|_| {
                Status::deadline_exceeded(format!(
                    "the curator has not begun to send within {BEGIN_DEADLINE:?}"
                ))
            })?
            .map_err(|_| gone())?;
        let mut left = size_bytes;
        loop {
            let piece = tokio::time::timeout(PIECE_DEADLINE, self.pieces.recv()).await.map_err(|_| {
                Status::unavailable(format!("the curator has sent nothing for {PIECE_DEADLINE:?}"))
            })?;
            let piece = match piece {
                Some(piece) => piece?,
                None if left == 0 => return Ok(()),
                None => return Err(gone()),
            };
            left = left.checked_sub(piece.len() as u64).ok_or_else(|| {
                Status::data_loss(format!(
                    "the file is larger than the {size_bytes} bytes that are registered"
                ))
            })?;
            tokio::time::sleep(self.relays.wait_for(piece.len())).await;
            put(to, Part::Chunk(piece)).await?;
        }
    }
}

fn gone() -> Status {
    Status::unavailable("the curator that was reading it has gone")
}

async fn put(to: &Outgoing, part: Part) -> Result<(), Status> {
    let response = v1::ReadCheckpointFileResponse { message: Some(part) };
    match tokio::time::timeout(PIECE_DEADLINE, to.send(Ok(response))).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Status::cancelled("nobody reads it any more")),
        Err(_) => Err(Status::deadline_exceeded("the reader takes nothing more")),
    }
}

/// How long to wait before so many more bytes may go.
#[derive(Debug)]
struct Pace {
    bytes_per_sec: u64,
    /// When what went before has had its time.
    free_at: Option<Instant>,
}

impl Pace {
    fn take(&mut self, bytes: u64, now: Instant) -> Duration {
        let from = self.free_at.map_or(now, |free_at| free_at.max(now));
        let took = Duration::from_secs_f64(bytes as f64 / self.bytes_per_sec.max(1) as f64);
        self.free_at = Some(from + took);
        from - now
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tonic::Code;

    use super::*;

    fn file(size_bytes: u64) -> v1::CheckpointFile {
        v1::CheckpointFile { name: "a".into(), size_bytes, sha256: "0".repeat(64) }
    }

    /// What a reader gets, and the code that it ends with.
    async fn read(size_bytes: u64, sends: Vec<Piece>) -> (Vec<u8>, Option<Code>) {
        let relays = Relays::default();
        let expected = relays.expect(None).unwrap();
        let curator = relays.begin(&expected.read_id).unwrap();
        assert!(relays.begin(&expected.read_id).is_none(), "it is sent once");
        let (to, mut reader) = mpsc::channel::<Result<v1::ReadCheckpointFileResponse, Status>>(1);
        let mut bytes = Vec::new();
        let mut code = None;
        let reading = async {
            while let Some(part) = reader.recv().await {
                match part.map(|part| part.message) {
                    Ok(Some(Part::Chunk(chunk))) => bytes.extend_from_slice(&chunk),
                    Ok(_) => {}
                    Err(status) => code = Some(status.code()),
                }
            }
        };
        let sending = async {
            for piece in sends {
                if curator.send(piece).await.is_err() {
                    break;
                }
            }
            drop(curator);
        };
        tokio::join!(expected.forward(file(size_bytes), to, pending()), sending, reading);
        let places = relays.places();
        assert!(places.asked.is_empty() && places.open.is_empty());
        drop(places);
        (bytes, code)
    }

    #[tokio::test]
    async fn a_file_goes_through_whole_or_says_why_not() {
        let piece = |text: &'static str| Ok(Bytes::from_static(text.as_bytes()));
        assert_eq!(read(6, vec![piece("abc"), piece("def")]).await, (b"abcdef".to_vec(), None));
        assert_eq!(read(0, vec![]).await, (vec![], None));
        let (_, code) = read(6, vec![piece("abc")]).await;
        assert_eq!(code, Some(Code::Unavailable), "the curator ended early");
        let (bytes, code) = read(4, vec![piece("abc"), piece("def")]).await;
        assert_eq!((bytes, code), (b"abc".to_vec(), Some(Code::DataLoss)), "more than is registered");
        let (_, code) = read(6, vec![piece("abc"), Err(Status::not_found("gone"))]).await;
        assert_eq!(code, Some(Code::NotFound));
    }

    #[tokio::test]
    async fn a_reader_that_goes_ends_the_curators_stream() {
        let relays = Relays::default();
        let expected = relays.expect(None).unwrap();
        let curator = relays.begin(&expected.read_id).unwrap();
        let (to, reader) = mpsc::channel(1);
        drop(reader);
        expected.forward(file(6), to, pending()).await;
        curator.closed().await;
    }

    /// The code that a reader's stream ends with.
    async fn end_of(
        mut reader: mpsc::Receiver<Result<v1::ReadCheckpointFileResponse, Status>>,
    ) -> Option<Code> {
        let mut code = None;
        while let Some(part) = reader.recv().await {
            code = part.err().map(|status| status.code());
        }
        code
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_ever() {
        let relays = Relays::default();
        let expected = relays.expect(None).unwrap();
        let (to, reader) = mpsc::channel(1);
        let (_, code) = tokio::join!(expected.forward(file(6), to, pending()), end_of(reader));
        assert_eq!(code, Some(Code::DeadlineExceeded), "the curator never begins");

        let expected = relays.expect(None).unwrap();
        let curator = relays.begin(&expected.read_id).unwrap();
        let (to, reader) = mpsc::channel(1);
        let (_, code) = tokio::join!(expected.forward(file(6), to, pending()), end_of(reader));
        assert_eq!(code, Some(Code::Unavailable), "the curator begins and falls silent");
        assert!(curator.is_closed());

        // A reader that takes nothing: its place is free again, and the curator's stream ends.
        let expected = relays.expect(None).unwrap();
        let curator = relays.begin(&expected.read_id).unwrap();
        let (to, _reader) = mpsc::channel(1);
        let sending = async { while curator.send(Ok(Bytes::from_static(b"a"))).await.is_ok() {} };
        tokio::join!(expected.forward(file(600), to, pending()), sending);
        assert!(relays.places().open.is_empty());
    }

    #[tokio::test]
    async fn the_end_of_leading_is_told_at_once() {
        let relays = Relays::default();
        let expected = relays.expect(None).unwrap();
        let curator = relays.begin(&expected.read_id).unwrap();
        let (to, reader) = mpsc::channel(1);
        let ends = std::future::ready(Status::unavailable("this controller leads no more"));
        let (_, code) = tokio::join!(expected.forward(file(6), to, ends), end_of(reader));
        assert_eq!(code, Some(Code::Unavailable));
        assert!(curator.is_closed());
    }

    #[test]
    fn places_are_bounded_and_come_back() {
        let relays = Relays::default();
        let tenant = |name: &str| Some(Tenant::parse(name).unwrap());
        let take = |of: Option<Tenant>| -> Vec<Expected> {
            (0..MOST_READS).map_while(|_| relays.expect(of.clone())).collect()
        };
        let mut research = take(tenant("research"));
        assert_eq!(research.len(), MOST_OF_ONE_TENANT, "one tenant does not crowd out the others");
        let products = take(tenant("products"));
        assert_eq!(research.len() + products.len(), MOST_READS);
        assert!(relays.expect(None).is_none());
        research.pop();
        assert!(relays.expect(tenant("products")).is_none());
        assert!(relays.expect(None).is_some());
    }

    #[test]
    fn bytes_take_their_time() {
        let mut pace = Pace { bytes_per_sec: 100, free_at: None };
        let start = Instant::now();
        let after = |millis| start + Duration::from_millis(millis);
        assert_eq!(pace.take(50, start), Duration::ZERO);
        assert_eq!(pace.take(100, start), Duration::from_millis(500));
        // 1.5 s are spoken for; at 1 s half of one is left.
        assert_eq!(pace.take(10, after(1000)), Duration::from_millis(500));
        assert_eq!(pace.take(10, after(60_000)), Duration::ZERO, "time that nobody used is not saved up");
    }
}
