//! The process group that the rest of Crescendo uses, whichever backend is behind it.

use crate::backend::{Backend, Elementwise, InFlight, Solo, done};
use crate::error::{CollectiveError, Result};
use crate::gloo::{Gloo, GlooOptions};
use crate::nccl::{Nccl, NcclId};
use crate::rendezvous::Rendezvous;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

/// The most that one rank may contribute to [`ProcessGroup::all_gather_bytes`].
pub const MAX_GATHER_BYTES: usize = 1 << 20;

/// What becomes of the values of all ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReduceOp {
    Sum,
    /// The sum divided by the number of ranks; floating-point kinds only.
    Average,
    /// The largest.
    Maximum,
}

/// The ranks that work on one attempt. Clones are the same group: one of them may abort it from another thread.
///
/// Every rank must make the same calls in the same order, on tensors of the same size and kind. Results have the same
/// bits on every rank, and from run to run.
#[derive(Clone)]
pub struct ProcessGroup {
    inner: Arc<Inner>,
}

struct Inner {
    rank: usize,
    world: usize,
    device: Device,
    backend: Box<dyn Backend>,
    /// The first failure: the group is broken from then on.
    failure: Mutex<Option<CollectiveError>>,
    /// Held while an operation is started: operations are matched between ranks by their order.
    starting: Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is guarded is replaced whole, so a panic elsewhere leaves nothing half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for ProcessGroup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProcessGroup")
            .field("rank", &self.inner.rank)
            .field("world", &self.inner.world)
            .field("device", &self.inner.device)
            .finish_non_exhaustive()
    }
}

impl ProcessGroup {
    /// A group of one rank, without any network.
    pub fn solo(device: Device) -> Self {
        Self::new(0, 1, device, Box::new(Solo))
    }

    /// Joins a group over Gloo, for tensors on the CPU: rank 0 with [`Rendezvous::host`], the others with
    /// [`Rendezvous::join`]. Returns when every rank is connected to every other.
    pub fn gloo(rank: usize, world: usize, rendezvous: Rendezvous, options: &GlooOptions) -> Result<Self> {
        check_rank(rank, world)?;
        match (&rendezvous, rank) {
            (Rendezvous::Host { .. }, 0) | (Rendezvous::Join { .. }, 1..) => {}
            (Rendezvous::Join { .. }, 0) => {
                return Err(CollectiveError::InvalidArgument("rank 0 must host the rendezvous".to_owned()));
            }
            (Rendezvous::Host { .. }, 1..) => {
                return Err(CollectiveError::InvalidArgument(format!(
                    "rank {rank} must join the rendezvous of rank 0"
                )));
            }
        }
        if world == 1 {
            return Ok(Self::solo(Device::Cpu));
        }
        let gloo = Gloo::connect(rank, world, rendezvous, options)?;
        Ok(Self::new(rank, world, Device::Cpu, Box::new(gloo)))
    }

    /// Joins a group over NCCL, for tensors on GPU `gpu_index` of this process. `id` comes from rank 0's
    /// [`NcclId::generate`], by whatever way. Call [`load_cuda`](crescendo_device::load_cuda) first.
    pub fn nccl(rank: usize, world: usize, gpu_index: usize, id: &NcclId, timeout: Duration) -> Result<Self> {
        check_rank(rank, world)?;
        let nccl = Nccl::connect(rank, world, gpu_index, id, timeout)?;
        Ok(Self::new(rank, world, Device::Cuda(gpu_index), Box::new(nccl)))
    }

    /// Joins a group over NCCL with the ranks of this group, which carries the id. Call it on every rank.
    pub fn with_nccl(&self, gpu_index: usize, timeout: Duration) -> Result<Self> {
        let own =
            if self.rank() == 0 { NcclId::generate() } else { Ok(NcclId::from_bytes([0; NcclId::BYTES])) };
        // A rank 0 that cannot make an id says so by sending none: nobody waits in vain.
        let sent: &[u8] = match &own {
            Ok(id) if self.rank() == 0 => id.as_bytes(),
            _ => &[],
        };
        let gathered = self.all_gather_bytes(sent, timeout)?;
        own?;
        let id = gathered
            .first()
            .and_then(|bytes| <[u8; NcclId::BYTES]>::try_from(bytes.as_slice()).ok())
            .map(NcclId::from_bytes)
            .ok_or_else(|| CollectiveError::BackendMissing("rank 0 has no NCCL".to_owned()))?;
        Self::nccl(self.rank(), self.world(), gpu_index, &id, timeout)
    }

    fn new(rank: usize, world: usize, device: Device, backend: Box<dyn Backend>) -> Self {
        let inner =
            Inner { rank, world, device, backend, failure: Mutex::new(None), starting: Mutex::new(()) };
        Self { inner: Arc::new(inner) }
    }

    /// This process's number, from 0.
    pub fn rank(&self) -> usize {
        self.inner.rank
    }

    /// How many ranks there are, at least 1.
    pub fn world(&self) -> usize {
        self.inner.world
    }

    /// Where the tensors must be.
    pub fn device(&self) -> Device {
        self.inner.device
    }

    /// Replaces `tensor` by the sum or average over all ranks: any shape, contiguous, kind float, double, half,
    /// bfloat16, or (sum only) 32- or 64-bit integer or byte.
    pub fn all_reduce(&self, tensor: &Tensor, op: ReduceOp, timeout: Duration) -> Result<()> {
        self.all_reduce_async(tensor, op, timeout)?.wait(timeout)
    }

    /// As [`all_reduce`](Self::all_reduce), in the background: the tensor must be left alone until the wait is over.
    /// `timeout` counts from now, whenever it is waited for.
    pub fn all_reduce_async(
        &self,
        tensor: &Tensor,
        op: ReduceOp,
        timeout: Duration,
    ) -> Result<PendingReduce> {
        let operation = "all-reduce";
        self.check_tensor(operation, tensor)?;
        if op == ReduceOp::Average && !is_float(tensor.kind()) {
            return Err(CollectiveError::InvalidArgument(format!(
                "average of kind {:?}: use a float kind",
                tensor.kind()
            )));
        }
        let by = match op {
            ReduceOp::Sum | ReduceOp::Average => Elementwise::Sum,
            ReduceOp::Maximum => Elementwise::Maximum,
        };
        let timeout = timeout.min(MAX_TIMEOUT);
        let deadline = Instant::now() + timeout;
        let in_flight = self.start(tensor, |backend| backend.start_reduce(operation, tensor, by, timeout))?;
        Ok(PendingReduce {
            group: self.clone(),
            tensor: tensor.shallow_clone(),
            op,
            in_flight,
            timeout,
            deadline,
        })
    }

    /// Replaces `tensor` by that of rank `root`, on every rank. Kinds as for [`all_reduce`](Self::all_reduce).
    pub fn broadcast(&self, tensor: &Tensor, root: usize, timeout: Duration) -> Result<()> {
        self.check_tensor("broadcast", tensor)?;
        if root >= self.world() {
            return Err(CollectiveError::InvalidArgument(format!(
                "root {root} is not a rank of {}",
                self.world()
            )));
        }
        let mut in_flight = self.start(tensor, |backend| backend.start_broadcast(tensor, root, timeout))?;
        self.break_on_error(in_flight.wait(timeout))
    }

    /// Returns when every rank has called it.
    pub fn barrier(&self, timeout: Duration) -> Result<()> {
        self.meet("barrier", timeout)
    }

    /// Returns when every rank has called it as its next operation: the sum of one element needs them all.
    fn meet(&self, operation: &'static str, timeout: Duration) -> Result<()> {
        self.check_alive()?;
        let token = Tensor::f_zeros([1], (Kind::Int, self.device()))
            .map_err(CollectiveError::of_tensor(operation))?;
        let mut in_flight =
            self.start(&token, |backend| backend.start_reduce(operation, &token, Elementwise::Sum, timeout))?;
        self.break_on_error(in_flight.wait(timeout))
    }

    /// What each rank contributed, by rank. Contributions may differ in length, up to [`MAX_GATHER_BYTES`].
    pub fn all_gather_bytes(&self, own: &[u8], timeout: Duration) -> Result<Vec<Vec<u8>>> {
        if own.len() > MAX_GATHER_BYTES {
            return Err(CollectiveError::InvalidArgument(format!(
                "all-gather of {} bytes: at most {MAX_GATHER_BYTES}",
                own.len()
            )));
        }
        // Each rank fills its own row of zeros, so that the sum over the ranks is the table. First the lengths, then
        // the rows, as long as the longest.
        let mut lengths = vec![0i64; self.world()];
        if let Some(length) = lengths.get_mut(self.rank()) {
            *length = own.len() as i64;
        }
        let lengths: Vec<i64> = self.sum_on_device(Tensor::f_from_slice(&lengths), timeout)?;
        let rows: Vec<usize> = lengths
            .iter()
            .map(|&length| {
                usize::try_from(length).ok().filter(|&length| length <= MAX_GATHER_BYTES).ok_or_else(|| {
                    CollectiveError::Backend {
                        operation: "all-gather",
                        detail: format!("a rank announced {length} bytes"),
                    }
                })
            })
            .collect::<Result<_>>()?;
        let row_bytes = rows.iter().copied().max().unwrap_or(0);
        if row_bytes == 0 {
            return Ok(vec![Vec::new(); self.world()]);
        }
        let mut table = vec![0u8; row_bytes * self.world()];
        let start = self.rank() * row_bytes;
        if let Some(row) = table.get_mut(start..start + own.len()) {
            row.copy_from_slice(own);
        }
        let table: Vec<u8> = self.sum_on_device(Tensor::f_from_slice(&table), timeout)?;
        Ok(table
            .chunks(row_bytes)
            .zip(rows)
            .map(|(row, length)| row[..length.min(row.len())].to_vec())
            .collect())
    }

    /// What each rank contributed, by rank.
    pub fn all_gather_f64(&self, own: &[f64], timeout: Duration) -> Result<Vec<Vec<f64>>> {
        let bytes: Vec<u8> = own.iter().flat_map(|value| value.to_le_bytes()).collect();
        let rows = self.all_gather_bytes(&bytes, timeout)?;
        Ok(rows
            .iter()
            .map(|row| row.as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect())
            .collect())
    }

    /// Makes every pending and later call of this group return [`CollectiveError::Aborted`] at once, in any thread, and
    /// closes the connections, so that the other ranks see a lost peer. What pending operations were writing to is
    /// undefined.
    pub fn abort(&self) {
        self.fail(CollectiveError::Aborted);
    }

    /// The orderly end: returns when every rank has called it, so that dropping the group takes no result from anyone, and
    /// whoever has left knows that what the others did before is done. A rank that is lost meanwhile, or does not come
    /// within `timeout`, is an error on all the others.
    pub fn leave(&self, timeout: Duration) -> Result<()> {
        let timeout = timeout.min(MAX_TIMEOUT);
        let deadline = Instant::now() + timeout;
        // The backends' own ends are none to rely on for this: NCCL's waits for its own transfers, and for no rank.
        self.meet("leave", timeout)?;
        let left = deadline.saturating_duration_since(Instant::now());
        self.break_on_error(self.inner.backend.leave(left))
    }

    /// The failure that broke the group, if one did.
    pub fn failure(&self) -> Option<CollectiveError> {
        lock(&self.inner.failure).clone()
    }

    fn check_alive(&self) -> Result<()> {
        self.failure().map_or(Ok(()), Err)
    }

    fn check_tensor(&self, operation: &str, tensor: &Tensor) -> Result<()> {
        let wrong =
            |what: String| Err(CollectiveError::InvalidArgument(format!("{operation} of a tensor {what}")));
        if !tensor.defined() {
            return wrong("that is undefined".to_owned());
        }
        if tensor.device() != self.device() {
            return wrong(format!("on {:?}, this group works on {:?}", tensor.device(), self.device()));
        }
        if tensor.is_sparse() || !tensor.is_contiguous() {
            return wrong(format!("of shape {:?} that is not contiguous", tensor.size()));
        }
        match tensor.kind() {
            kind if is_float(kind) => Ok(()),
            Kind::Int | Kind::Int64 | Kind::Uint8 => Ok(()),
            kind => wrong(format!("of kind {kind:?}, which has no reduction")),
        }
    }

    /// Starts an operation in its turn; an empty tensor is done without anyone.
    fn start(
        &self,
        tensor: &Tensor,
        begin: impl FnOnce(&dyn Backend) -> Result<Box<dyn InFlight>>,
    ) -> Result<Box<dyn InFlight>> {
        self.check_alive()?;
        if tensor.numel() == 0 {
            return Ok(done());
        }
        let started = {
            let _turn = lock(&self.inner.starting);
            begin(self.inner.backend.as_ref())
        };
        self.break_on_error(started)
    }

    /// Breaks the group on an error that breaks it, and prefers the failure that came first.
    fn break_on_error<T>(&self, result: Result<T>) -> Result<T> {
        match result {
            Err(error) if error.breaks_group() => Err(self.fail(error)),
            other => other,
        }
    }

    /// Remembers the first failure and returns it.
    fn fail(&self, error: CollectiveError) -> CollectiveError {
        let (first, was_alive) = {
            let mut failure = lock(&self.inner.failure);
            let was_alive = failure.is_none();
            (failure.get_or_insert(error).clone(), was_alive)
        };
        if was_alive {
            self.inner.backend.abort();
        }
        first
    }

    fn sum_on_device<T: tch::kind::Element>(
        &self,
        values: std::result::Result<Tensor, tch::TchError>,
        timeout: Duration,
    ) -> Result<Vec<T>>
    where
        Vec<T>: TryFrom<Tensor, Error = tch::TchError>,
    {
        let failed = CollectiveError::of_tensor("all-gather");
        let values = values.and_then(|values| values.f_to_device(self.device())).map_err(&failed)?;
        let mut in_flight = self.start(&values, |backend| {
            backend.start_reduce("all-gather", &values, Elementwise::Sum, timeout)
        })?;
        self.break_on_error(in_flight.wait(timeout))?;
        values.f_to_device(Device::Cpu).and_then(Vec::<T>::try_from).map_err(&failed)
    }
}

/// Longest timeout that is kept exactly; far beyond any use, near enough to be added to a clock.
const MAX_TIMEOUT: Duration = Duration::from_secs(30 * 24 * 3600);

/// An all-reduce in the background. Dropping it gives up the result, not the operation.
#[must_use = "the tensor holds the result only after `wait`"]
pub struct PendingReduce {
    group: ProcessGroup,
    tensor: Tensor,
    op: ReduceOp,
    in_flight: Box<dyn InFlight>,
    timeout: Duration,
    deadline: Instant,
}

impl PendingReduce {
    /// Waits until the tensor holds the result: at most `limit`, and at most the timeout given at the start.
    pub fn wait(mut self, limit: Duration) -> Result<()> {
        self.group.check_alive()?;
        let left = self.deadline.saturating_duration_since(Instant::now());
        let waited = self.in_flight.wait(limit.min(left)).map_err(|error| match error {
            // What was given, rather than what of it was left.
            CollectiveError::Timeout { operation, detail, .. } => {
                CollectiveError::Timeout { operation, limit: limit.min(self.timeout), detail }
            }
            other => other,
        });
        self.group.break_on_error(waited)?;
        if self.op == ReduceOp::Average && self.group.world() > 1 {
            let world = self.group.world() as f64;
            // In place: what it returns is the same tensor again.
            let _ = tch::no_grad(|| self.tensor.f_div_scalar_(world))
                .map_err(CollectiveError::of_tensor("all-reduce"))?;
        }
        Ok(())
    }
}

fn is_float(kind: Kind) -> bool {
    matches!(kind, Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16)
}

fn check_rank(rank: usize, world: usize) -> Result<()> {
    if rank < world {
        Ok(())
    } else {
        Err(CollectiveError::InvalidArgument(format!("rank {rank} in a group of {world}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const LIMIT: Duration = Duration::from_secs(5);

    #[test]
    fn one_rank_is_its_own_sum_and_average() {
        let group = ProcessGroup::solo(Device::Cpu);
        let tensor = Tensor::from_slice(&[1.5f32, -2.0]);
        group.all_reduce(&tensor, ReduceOp::Sum, LIMIT).unwrap();
        group.all_reduce(&tensor, ReduceOp::Average, LIMIT).unwrap();
        group.broadcast(&tensor, 0, LIMIT).unwrap();
        group.barrier(LIMIT).unwrap();
        assert_eq!(Vec::<f32>::try_from(&tensor).unwrap(), [1.5, -2.0]);
        assert_eq!(group.all_gather_bytes(b"abc", LIMIT).unwrap(), [b"abc".to_vec()]);
        assert_eq!(group.all_gather_f64(&[0.1, f64::INFINITY], LIMIT).unwrap(), [[0.1, f64::INFINITY]]);
        group.leave(LIMIT).unwrap();
    }

    #[test]
    fn an_aborted_group_says_so_to_pending_and_later_calls() {
        let group = ProcessGroup::solo(Device::Cpu);
        let tensor = Tensor::from_slice(&[1.0f32]);
        let pending = group.all_reduce_async(&tensor, ReduceOp::Sum, LIMIT).unwrap();
        group.clone().abort();
        assert!(pending.wait(LIMIT).unwrap_err().is_aborted());
        assert!(group.barrier(LIMIT).unwrap_err().is_aborted());
        assert_eq!(group.failure(), Some(CollectiveError::Aborted));
    }

    /// Notes what is asked of it, and whether the ranks meet.
    struct Noting {
        asked: Arc<Mutex<Vec<String>>>,
        meets: Result<()>,
    }

    impl Noting {
        fn note(&self, what: &str) {
            lock(&self.asked).push(what.to_owned());
        }
    }

    impl Backend for Noting {
        fn start_reduce(
            &self,
            operation: &'static str,
            tensor: &Tensor,
            _by: Elementwise,
            _timeout: Duration,
        ) -> Result<Box<dyn InFlight>> {
            self.note(&format!("{operation} of {}", tensor.numel()));
            Ok(Box::new(Meeting { asked: Arc::clone(&self.asked), outcome: self.meets.clone() }))
        }

        fn start_broadcast(&self, _: &Tensor, _: usize, _: Duration) -> Result<Box<dyn InFlight>> {
            Ok(done())
        }

        fn abort(&self) {
            self.note("abort");
        }

        fn leave(&self, _timeout: Duration) -> Result<()> {
            self.note("end");
            Ok(())
        }
    }

    struct Meeting {
        asked: Arc<Mutex<Vec<String>>>,
        outcome: Result<()>,
    }

    impl InFlight for Meeting {
        fn wait(&mut self, _limit: Duration) -> Result<()> {
            lock(&self.asked).push("waited".to_owned());
            self.outcome.clone()
        }
    }

    /// Whatever the backend: NCCL's own end waits for nobody, and so nothing of a backend ends before all have come.
    #[test]
    fn a_backend_ends_only_once_all_ranks_have_met_to_leave() {
        let leave = |meets: Result<()>| {
            let asked = Arc::<Mutex<Vec<String>>>::default();
            let backend = Noting { asked: Arc::clone(&asked), meets };
            let outcome = ProcessGroup::new(1, 2, Device::Cpu, Box::new(backend)).leave(LIMIT);
            let asked = lock(&asked).clone();
            (outcome, asked)
        };
        assert_eq!(leave(Ok(())), (Ok(()), ["leave of 1", "waited", "end"].map(str::to_owned).to_vec()));
        let lost = CollectiveError::PeerLost { operation: "leave", detail: "reset".to_owned() };
        assert_eq!(
            leave(Err(lost.clone())),
            (Err(lost), ["leave of 1", "waited", "abort"].map(str::to_owned).to_vec())
        );
    }

    #[test]
    fn the_first_failure_is_the_one_that_is_told() {
        let group = ProcessGroup::solo(Device::Cpu);
        let lost = CollectiveError::PeerLost { operation: "all-reduce", detail: "reset".to_owned() };
        assert_eq!(group.break_on_error::<()>(Err(lost.clone())), Err(lost.clone()));
        group.abort();
        assert_eq!(group.barrier(LIMIT), Err(lost));
    }

    #[test]
    fn ranks_and_roles_are_checked_before_anything_is_sent() {
        let options = GlooOptions::default();
        let join = || Rendezvous::join((Ipv4Addr::LOCALHOST, 1).into());
        let host = || Rendezvous::host(Ipv4Addr::LOCALHOST.into()).unwrap();
        for (rank, world, rendezvous) in [(2, 2, join()), (0, 0, host()), (0, 2, join()), (1, 2, host())] {
            let refused = ProcessGroup::gloo(rank, world, rendezvous, &options).unwrap_err();
            assert!(matches!(refused, CollectiveError::InvalidArgument(_)), "{refused}");
        }
        // One rank needs nobody.
        assert_eq!(ProcessGroup::gloo(0, 1, host(), &options).unwrap().world(), 1);
    }
}
