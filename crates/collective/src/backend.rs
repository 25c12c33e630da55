//! What a backend does. The group around it checks arguments, averages, and remembers the first failure.

use crate::error::Result;
use std::time::Duration;
use tch::Tensor;

/// How an element of the result comes from those of all ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Elementwise {
    Sum,
    Maximum,
}

/// One way for ranks to talk. Operations must be started in the same order on every rank; the group starts them one at
/// a time. Tensors are checked by the group: contiguous, on the group's device, of a kind that every backend knows.
pub(crate) trait Backend: Send + Sync {
    /// Begins to replace `tensor` by the elements of all ranks, put together.
    fn start_reduce(
        &self,
        operation: &'static str,
        tensor: &Tensor,
        by: Elementwise,
        timeout: Duration,
    ) -> Result<Box<dyn InFlight>>;

    /// Begins to replace `tensor` by that of rank `root`.
    fn start_broadcast(&self, tensor: &Tensor, root: usize, timeout: Duration) -> Result<Box<dyn InFlight>>;

    /// Makes every pending wait return, here and on the peers. Any thread, any number of times.
    fn abort(&self);

    /// Ends what this rank has open, once all ranks have met to leave: returns when no other needs this one any more.
    fn leave(&self, timeout: Duration) -> Result<()>;
}

/// A started operation. Dropping it does not cancel it: it keeps its own reference to the tensor.
pub(crate) trait InFlight: Send {
    /// Waits for the result, at most `limit`.
    fn wait(&mut self, limit: Duration) -> Result<()>;
}

/// The group of one rank: everything is done before it begins.
pub(crate) struct Solo;

struct Done;

impl InFlight for Done {
    fn wait(&mut self, _limit: Duration) -> Result<()> {
        Ok(())
    }
}

/// An operation that needs nobody else.
pub(crate) fn done() -> Box<dyn InFlight> {
    Box::new(Done)
}

impl Backend for Solo {
    fn start_reduce(
        &self,
        _operation: &'static str,
        _tensor: &Tensor,
        _by: Elementwise,
        _timeout: Duration,
    ) -> Result<Box<dyn InFlight>> {
        Ok(done())
    }

    fn start_broadcast(
        &self,
        _tensor: &Tensor,
        _root: usize,
        _timeout: Duration,
    ) -> Result<Box<dyn InFlight>> {
        Ok(done())
    }

    fn abort(&self) {}

    fn leave(&self, _timeout: Duration) -> Result<()> {
        Ok(())
    }
}
