//! What trains as it was between two steps, copied while the next one runs.
//!
//! ```text
//!   training thread   step k ── take ── forward, backward ── optimizer step k+1, bucket by bucket
//!                                │                             ▲ Hold::before_change
//!   copying thread               └─▶ Reader::next_chunk, next_chunk, … (in the order of the files)
//! ```
//!
//! Values, moments and averages change in the optimizer step alone. So nothing is copied up front: the reader goes
//! through the files while forward and backward passes only read the same memory, and the optimizer step waits for it at
//! each bucket. What the reader has copied and nobody has taken yet is bounded; when that bound alone holds the optimizer
//! up, it is lifted after a while: memory is then worth less than a gang that stands still.

use std::collections::BTreeSet;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crescendo_dataset::checkpoint::{EMA_FILE, OPTIMIZER_FILE};
use crescendo_device::host_copy::HostCopy;
use memmap2::MmapMut;
use safetensors::Dtype;
use tch::{Device, Tensor};

use super::adamw::{AdamW, Ema};
use super::flat_params::FlatParams;
use crate::error::{ModelError, Result};
use crate::weights;

/// Bytes of every chunk but a file's last.
pub const CHUNK_BYTES: usize = 16 << 20;
/// Chunks that may wait to be taken however little is to be copied.
const MIN_STAGED_BYTES: u64 = 8 * CHUNK_BYTES as u64;
/// See [`SnapshotLimits::patience`].
const PATIENCE: Duration = Duration::from_secs(5);
/// Limit of all that the optimizer waits for one bucket.
const COPY_DEADLINE: Duration = Duration::from_secs(100);
/// Limit of the reader's wait for chunks to be taken.
const TAKE_DEADLINE: Duration = Duration::from_secs(900);

/// A run of a file's bytes: float32 elements of one flat vector.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Piece {
    /// Which vector: values, averages and moments of each bucket.
    flat: usize,
    bucket: usize,
    start: i64,
    len: i64,
}

/// The order in which pieces are copied, and what of it has to be done before a bucket may change.
#[derive(Debug)]
struct CopyOrder {
    pieces: Vec<Piece>,
    /// For each bucket the number of pieces, from the first, that hold all of its own.
    needed: Vec<usize>,
}

impl CopyOrder {
    fn new(pieces: Vec<Piece>, buckets: usize) -> Self {
        let mut needed = vec![0; buckets];
        for (at, piece) in pieces.iter().enumerate() {
            if let Some(needed) = needed.get_mut(piece.bucket) {
                *needed = at + 1;
            }
        }
        Self { pieces, needed }
    }

    /// Whether all of the bucket is copied once the first `copied` pieces are.
    fn may_change(&self, bucket: usize, copied: usize) -> bool {
        self.needed.get(bucket).is_none_or(|needed| copied >= *needed)
    }

    /// Vectors of the bucket that are not wholly copied yet, with the pieces before `copied` done.
    fn uncopied(&self, bucket: usize, copied: usize) -> BTreeSet<usize> {
        let left = self.pieces.iter().skip(copied);
        left.filter(|piece| piece.bucket == bucket).map(|piece| piece.flat).collect()
    }
}

/// One file of a snapshot: a header, then pieces.
#[derive(Debug)]
pub struct SnapshotFile {
    pub name: &'static str,
    pub size_bytes: u64,
    header: Vec<u8>,
    pieces: std::ops::Range<usize>,
}

/// Bounds of a snapshot's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotLimits {
    /// Of chunks that are copied and not dropped yet, on the host.
    pub staged_bytes: u64,
    /// Of copies that the training thread makes beside the vectors themselves where the reader has not come by: on a GPU
    /// that takes less time than to wait.
    pub cloned_bytes: u64,
    /// How long the optimizer is held up by chunks that nobody takes, before more of them may wait than the bound says.
    pub patience: Duration,
}

impl SnapshotLimits {
    /// For `tensors_bytes` in all, beside which a device has `free_bytes` that nobody uses. On the CPU chunks may take less
    /// than half of what the tensors do; from a GPU they are the only copy on the host, and may take as much.
    pub fn new(tensors_bytes: u64, device: Device, free_bytes: u64) -> Self {
        let (staged_bytes, cloned_bytes) = match device {
            Device::Cpu => (tensors_bytes / 16 * 7, 0),
            _ => (tensors_bytes, free_bytes / 2),
        };
        // A moment's parts under way and headers come on top.
        let staged_bytes = staged_bytes.saturating_sub(2 * CHUNK_BYTES as u64).max(MIN_STAGED_BYTES);
        Self { staged_bytes, cloned_bytes, patience: PATIENCE }
    }
}

/// Bytes of everything that a snapshot of these holds.
pub fn snapshot_bytes(params: &FlatParams, ema: Option<&Ema>) -> u64 {
    let copies = if ema.is_some() { 4 } else { 3 };
    params.parameter_count().unsigned_abs() * 4 * copies
}

/// Takes a snapshot: the training thread keeps the [`Hold`], another thread reads. Copies nothing yet. `trained` names the
/// file of the values.
pub fn take(
    params: &FlatParams,
    optimizer: &AdamW,
    ema: Option<&Ema>,
    trained: &'static str,
    limits: SnapshotLimits,
) -> Result<(Hold, Reader)> {
    let values: Vec<Tensor> = params.buckets().iter().map(|bucket| bucket.values().shallow_clone()).collect();
    let shared = |tensors: &[Tensor]| tensors.iter().map(Tensor::shallow_clone).collect::<Vec<_>>();
    let (avg, avg_sq) = optimizer.moments();
    // On a GPU the reader copies beside the queue that the last step is in: that has to be done.
    for last in values.last().into_iter().chain(ema.and_then(|ema| ema.averages().last())) {
        if last.device() != Device::Cpu {
            last.f_narrow(0, 0, 1)?.f_double_value(&[0])?;
        }
    }
    let mut contents = vec![(trained, vec![("", values)])];
    contents.extend(ema.map(|ema| (EMA_FILE, vec![("", shared(ema.averages()))])));
    contents.push((OPTIMIZER_FILE, vec![("exp_avg.", shared(avg)), ("exp_avg_sq.", shared(avg_sq))]));

    let (mut flats, mut pieces, mut files) = (Vec::new(), Vec::new(), Vec::new());
    for (name, vectors) in contents {
        let mut entries: Vec<(String, Vec<i64>, Piece)> = Vec::new();
        for (prefix, tensors) in vectors {
            let first = flats.len();
            entries.extend(params.places().map(|place| {
                let piece = Piece {
                    flat: first + place.bucket,
                    bucket: place.bucket,
                    start: place.offset,
                    len: place.len,
                };
                (format!("{prefix}{}", place.name), place.shape.to_vec(), piece)
            }));
            flats.extend(tensors.into_iter().map(|tensor| Source { tensor, cloned: false }));
        }
        entries.sort_by(|(a, ..), (b, ..)| a.cmp(b));
        let header = weights::header(
            entries.iter().map(|(name, shape, _)| (name.as_str(), Dtype::F32, shape.as_slice())),
            &weights::published_strings(),
        );
        let from = pieces.len();
        pieces.extend(entries.into_iter().map(|(.., piece)| piece));
        let elements: i64 = pieces[from..].iter().map(|piece| piece.len).sum();
        let size_bytes = header.len() as u64 + elements.unsigned_abs() * 4;
        files.push(SnapshotFile { name, size_bytes, header, pieces: from..pieces.len() });
    }
    let shared = Arc::new(Shared {
        order: CopyOrder::new(pieces, params.buckets().len()),
        state: Mutex::new(State {
            copied: 0,
            reading: None,
            flats,
            staged_bytes: 0,
            staged_limit: limits.staged_bytes,
            unused: Vec::new(),
            broken: None,
            reader_ended: false,
        }),
        changed: Condvar::new(),
    });
    let hold =
        Hold { shared: Arc::clone(&shared), clones_left: limits.cloned_bytes, patience: limits.patience };
    Ok((hold, Reader { shared, files, at: Position::default() }))
}

/// What one vector is read from.
#[derive(Debug)]
struct Source {
    tensor: Tensor,
    /// Not the vector that trains, but a copy of it.
    cloned: bool,
}

/// What both threads see.
#[derive(Debug)]
struct Shared {
    order: CopyOrder,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// Pieces that are copied.
    copied: usize,
    /// The vector that the reader is copying from at this moment, if that is the one that trains.
    reading: Option<usize>,
    /// Where each vector is read from.
    flats: Vec<Source>,
    staged_bytes: u64,
    staged_limit: u64,
    /// Memory of chunks that are done with.
    unused: Vec<MmapMut>,
    /// Why what is read from now on would be of another step.
    broken: Option<&'static str>,
    /// Nobody reads any more.
    reader_ended: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock leaves the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a change, until `deadline` at most.
    fn wait<'a>(&self, state: MutexGuard<'a, State>, deadline: Instant) -> MutexGuard<'a, State> {
        let left = deadline.saturating_duration_since(Instant::now());
        self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
    }

    fn all_copied(&self, state: &State) -> bool {
        state.copied == self.order.pieces.len()
    }
}

/// The training thread's half. As long as a snapshot is being copied, nothing of it may change but through this; one that
/// is dropped earlier spoils the snapshot, and the reader says so.
#[derive(Debug)]
pub struct Hold {
    shared: Arc<Shared>,
    /// Bytes that clones may still take.
    clones_left: u64,
    patience: Duration,
}

/// How the optimizer was held up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    pub waited: Duration,
    /// More chunks may wait than the bound says: nobody took them.
    pub lifted: bool,
}

impl Hold {
    /// Returns once the bucket may change: it is copied, or the snapshot is given up.
    pub fn before_change(&mut self, bucket: usize) -> Result<Held> {
        let began = Instant::now();
        let mut held = Held::default();
        self.clone_uncopied(bucket)?;
        let mut state = self.shared.lock();
        loop {
            let free = state.reader_ended
                || self.shared.order.may_change(bucket, state.copied)
                || state.broken.is_some() && state.reading.is_none();
            if free || self.is_cloned(&state, bucket) {
                held.waited = began.elapsed();
                return Ok(held);
            }
            let waited = began.elapsed();
            if waited >= COPY_DEADLINE && state.broken.is_some() {
                return Err(ModelError::input("snapshot", "the copying thread does not answer"));
            }
            if waited >= COPY_DEADLINE / 2 {
                state.broken.get_or_insert("it was not copied before the optimizer had to go on");
                self.shared.changed.notify_all();
            }
            if waited >= self.patience && state.staged_limit != u64::MAX {
                state.staged_limit = u64::MAX;
                held.lifted = true;
                self.shared.changed.notify_all();
            }
            let next =
                [self.patience, COPY_DEADLINE / 2, COPY_DEADLINE].into_iter().find(|limit| *limit > waited);
            state = self.shared.wait(state, began + next.unwrap_or(COPY_DEADLINE));
        }
    }

    /// Whether all is copied, so that this may go.
    pub fn is_done(&self) -> bool {
        let state = self.shared.lock();
        state.reader_ended || self.shared.all_copied(&state)
    }

    /// Whether the reader takes what is left of the bucket from clones; not while it is in one of the bucket's own vectors.
    fn is_cloned(&self, state: &State, bucket: usize) -> bool {
        let left = self.shared.order.uncopied(bucket, state.copied);
        !left.is_empty()
            && state.reading.is_none_or(|flat| !left.contains(&flat))
            && left.iter().all(|flat| state.flats.get(*flat).is_some_and(|source| source.cloned))
    }

    /// Puts clones in the place of what is left of the bucket, as far as their memory reaches.
    fn clone_uncopied(&mut self, bucket: usize) -> Result<()> {
        if self.clones_left == 0 {
            return Ok(());
        }
        let sources: Vec<(usize, Tensor)> = {
            let state = self.shared.lock();
            let left = self.shared.order.uncopied(bucket, state.copied);
            let live = |at: &usize| state.flats.get(*at).filter(|source| !source.cloned);
            left.iter().filter_map(|at| Some((*at, live(at)?.tensor.shallow_clone()))).collect()
        };
        let bytes: u64 = sources.iter().map(|(_, source)| source.numel() as u64 * 4).sum();
        if sources.is_empty() || bytes > self.clones_left {
            return Ok(());
        }
        self.clones_left -= bytes;
        let mut clones = Vec::with_capacity(sources.len());
        for (at, source) in &sources {
            clones.push((*at, super::flat_params::copy_of(source)?));
        }
        // The reader copies beside the queue in which these were made: they have to be there.
        if let Some((_, last)) = clones.last() {
            last.f_narrow(0, 0, 1)?.f_double_value(&[0])?;
        }
        let mut state = self.shared.lock();
        for (at, clone) in clones {
            if let Some(place) = state.flats.get_mut(at) {
                *place = Source { tensor: clone, cloned: true };
            }
        }
        Ok(())
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if !self.shared.all_copied(&state) {
            state.broken.get_or_insert("training went on without it");
        }
        self.shared.changed.notify_all();
    }
}

/// How elements come from a tensor, wherever it is, to the host.
pub trait CopyToHost {
    /// Copies `source`, contiguous, to `target`, which has as many bytes.
    fn copy(&mut self, source: &Tensor, target: &mut [u8]) -> Result<()>;
}

/// For tensors on the CPU.
#[derive(Clone, Copy, Debug, Default)]
pub struct FromHost;

impl CopyToHost for FromHost {
    fn copy(&mut self, source: &Tensor, target: &mut [u8]) -> Result<()> {
        Ok(source.f_copy_data_u8(target, source.numel())?)
    }
}

/// From a GPU.
struct FromGpu(HostCopy);

impl CopyToHost for FromGpu {
    fn copy(&mut self, source: &Tensor, target: &mut [u8]) -> Result<()> {
        self.0.copy(source, target).map_err(|error| ModelError::Caller(error.into()))
    }
}

/// For tensors on `device`.
pub fn copier(device: Device) -> Result<Box<dyn CopyToHost>> {
    Ok(match device {
        Device::Cuda(index) => {
            Box::new(FromGpu(HostCopy::new(index).map_err(|error| ModelError::Caller(error.into()))?))
        }
        _ => Box::new(FromHost),
    })
}

/// Where the reader is.
#[derive(Clone, Copy, Debug, Default)]
struct Position {
    file: usize,
    /// Bytes of the file's header that are out.
    header: usize,
    /// Elements of the next piece that are out.
    elements: i64,
}

/// The copying thread's half.
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    files: Vec<SnapshotFile>,
    at: Position,
}

/// Some of a file's bytes, [`CHUNK_BYTES`] unless they are its last ones.
#[derive(Debug)]
pub struct Chunk {
    pub is_last_of_file: bool,
    memory: Option<MmapMut>,
    len: usize,
    shared: Arc<Shared>,
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        self.memory.as_deref().and_then(|memory| memory.get(..self.len)).unwrap_or_default()
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.staged_bytes = state.staged_bytes.saturating_sub(CHUNK_BYTES as u64);
        if !state.reader_ended {
            state.unused.extend(self.memory.take());
        }
        self.shared.changed.notify_all();
    }
}

impl Reader {
    /// The files, in the order in which their chunks come.
    pub fn files(&self) -> &[SnapshotFile] {
        &self.files
    }

    /// Bytes of all files.
    pub fn size_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size_bytes).sum()
    }

    /// Chunks of all files.
    pub fn chunks(&self) -> usize {
        let of = |file: &SnapshotFile| file.size_bytes.div_ceil(CHUNK_BYTES as u64);
        usize::try_from(self.files.iter().map(of).sum::<u64>()).unwrap_or(usize::MAX)
    }

    /// The next chunk; none after the last one. Waits for earlier ones to be dropped where there are too many. An error
    /// spoils the snapshot.
    pub fn next_chunk(&mut self, copier: &mut dyn CopyToHost) -> Result<Option<Chunk>> {
        let Some(file) = self.files.get(self.at.file) else { return Ok(None) };
        let (header_bytes, pieces) = (file.header.len(), file.pieces.clone());
        let mut memory = self.memory()?;
        let left = &file.header[self.at.header..];
        // A header is a multiple of 8 bytes long, and a chunk too: elements are never cut.
        let mut len = left.len().min(CHUNK_BYTES);
        memory[..len].copy_from_slice(&left[..len]);
        self.at.header += len;
        let shared = Arc::clone(&self.shared);
        while len < CHUNK_BYTES {
            let copied = shared.lock().copied;
            let Some(piece) = shared.order.pieces.get(copied).filter(|_| copied < pieces.end) else { break };
            let room = ((CHUNK_BYTES - len) / size_of::<f32>()) as i64;
            let elements = (piece.len - self.at.elements).min(room);
            let bytes = elements as usize * size_of::<f32>();
            self.copy(piece, elements, &mut memory[len..len + bytes], copier)?;
            len += bytes;
        }
        let copied = shared.lock().copied;
        let is_last_of_file = self.at.header == header_bytes && copied >= pieces.end;
        if is_last_of_file {
            self.at = Position { file: self.at.file + 1, ..Position::default() };
        }
        Ok(Some(Chunk { is_last_of_file, memory: Some(memory), len, shared }))
    }

    /// Copies the next elements of `piece`, and notes it if they are its last.
    fn copy(
        &mut self,
        piece: &Piece,
        elements: i64,
        target: &mut [u8],
        copier: &mut dyn CopyToHost,
    ) -> Result<()> {
        let source = {
            let mut state = self.shared.lock();
            if let Some(reason) = state.broken {
                return Err(ModelError::input("snapshot", reason));
            }
            let State { flats, reading, .. } = &mut *state;
            let source =
                flats.get(piece.flat).ok_or_else(|| ModelError::input("snapshot", "a bucket is missing"))?;
            *reading = (!source.cloned).then_some(piece.flat);
            source.tensor.shallow_clone()
        };
        let run = source.f_narrow(0, piece.start + self.at.elements, elements);
        let outcome = run.map_err(ModelError::from).and_then(|run| copier.copy(&run, target));
        let mut state = self.shared.lock();
        state.reading = None;
        if outcome.is_ok() {
            self.at.elements += elements;
            if self.at.elements == piece.len {
                state.copied += 1;
                self.at.elements = 0;
            }
        }
        drop(state);
        self.shared.changed.notify_all();
        outcome
    }

    /// Memory for one chunk, within the bound.
    fn memory(&self) -> Result<MmapMut> {
        let deadline = Instant::now() + TAKE_DEADLINE;
        let chunk_bytes = CHUNK_BYTES as u64;
        let mut state = self.shared.lock();
        while state.staged_bytes.saturating_add(chunk_bytes) > state.staged_limit {
            if let Some(reason) = state.broken {
                return Err(ModelError::input("snapshot", reason));
            }
            if Instant::now() >= deadline {
                return Err(ModelError::input(
                    "snapshot",
                    format!("nobody took a chunk within {TAKE_DEADLINE:?}"),
                ));
            }
            state = self.shared.wait(state, deadline);
        }
        let memory = match state.unused.pop() {
            Some(memory) => memory,
            // Straight from the system, and back to it: the allocator would keep it.
            None => MmapMut::map_anon(CHUNK_BYTES)
                .map_err(|error| ModelError::input("snapshot", format!("no memory for a chunk: {error}")))?,
        };
        state.staged_bytes += chunk_bytes;
        Ok(memory)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.reader_ended = true;
        state.reading = None;
        // Clones, and memory that no chunk needs any more.
        state.flats.clear();
        state.unused.clear();
        drop(state);
        self.shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests;
