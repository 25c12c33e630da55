//! Averaging gradients while the backward pass goes on: one flat buffer a bucket, reduced as soon as it is filled.

use crate::error::{CollectiveError, Result};
use crate::group::{PendingReduce, ProcessGroup, ReduceOp};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};
use tch::{Kind, Tensor};

/// Sizes of one bucket's tensors, in order: usually the gradients of one block.
pub type BucketShapes = Vec<Vec<i64>>;

/// Averages gradients over the ranks of a group, bucket by bucket.
///
/// ```text
///   backward of block 3    backward of block 2    backward of block 1
///   start(0) ───────────▶  start(1) ───────────▶  start(2) ──▶ finish
///     └── average bucket 0 ──────┐
///                                └── average bucket 1 ──┐
///                                                       └── average bucket 2 ──▶ gradients hold the averages
/// ```
///
/// Buckets leave in the order in which they were declared, whatever the order of filling: so every rank sends the same
/// bucket at the same time. At most all buckets are in flight, one buffer each.
pub struct OverlappedReducer {
    group: ProcessGroup,
    buckets: Vec<Bucket>,
    /// The first bucket that has not left yet.
    next: usize,
    timeout: Duration,
}

struct Bucket {
    /// `[elements]`, of the reducer's kind.
    flat: Tensor,
    /// One window into `flat` a tensor, of its shape.
    windows: Vec<Tensor>,
    shapes: BucketShapes,
    state: State,
}

enum State {
    Empty,
    Filled { gradients: Vec<Tensor> },
    InFlight { gradients: Vec<Tensor>, pending: PendingReduce },
}

impl OverlappedReducer {
    /// Buffers of `kind` (a float kind; gradients are converted on the way in and out) for buckets of these shapes, in
    /// the order in which the backward pass fills them. Every rank calls it, and all must agree on the layout. `timeout`
    /// limits each bucket's reduction, and this call.
    pub fn new(
        group: ProcessGroup,
        buckets: Vec<BucketShapes>,
        kind: Kind,
        timeout: Duration,
    ) -> Result<Self> {
        let buckets = buckets
            .into_iter()
            .enumerate()
            .map(|(index, shapes)| Bucket::new(index, shapes, kind, &group))
            .collect::<Result<Vec<_>>>()?;
        agree_on_layout(&group, &buckets, kind, timeout)?;
        Ok(Self { group, buckets, next: 0, timeout })
    }

    /// Takes the gradients of one bucket, and sends off what can go. The tensors are read now and written by
    /// [`finish`](Self::finish).
    pub fn start(&mut self, bucket: usize, gradients: &[Tensor]) -> Result<()> {
        let count = self.buckets.len();
        let Some(entry) = self.buckets.get_mut(bucket) else {
            return Err(CollectiveError::InvalidArgument(format!("bucket {bucket} of {count}")));
        };
        entry.fill(bucket, gradients)?;
        self.send_ready()
    }

    /// Waits for all buckets, at most `limit` in all, and writes the averages into the gradients. Ready for the next
    /// step afterwards, also after an error.
    pub fn finish(&mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now().checked_add(limit);
        let states: Vec<State> = self
            .buckets
            .iter_mut()
            .map(|bucket| std::mem::replace(&mut bucket.state, State::Empty))
            .collect();
        self.next = 0;
        let mut missing = None;
        for (index, (bucket, state)) in self.buckets.iter_mut().zip(states).enumerate() {
            match state {
                State::InFlight { mut gradients, pending } => {
                    let left =
                        deadline.map_or(limit, |deadline| deadline.saturating_duration_since(Instant::now()));
                    pending.wait(left)?;
                    bucket.scatter(&mut gradients)?;
                }
                // The buckets before the gap are waited for all the same: the other ranks reduce them, too.
                State::Empty | State::Filled { .. } => missing = missing.or(Some(index)),
            }
        }
        match missing {
            None => Ok(()),
            Some(index) => Err(CollectiveError::InvalidArgument(format!(
                "bucket {index} was not started before `finish`"
            ))),
        }
    }

    /// How many buckets there are.
    pub fn bucket_count(&self) -> usize {
        self.buckets.len()
    }

    /// Bytes of all buffers together.
    pub fn buffer_bytes(&self) -> usize {
        self.buckets.iter().map(|bucket| bucket.flat.numel() * bucket.flat.kind().elt_size_in_bytes()).sum()
    }

    fn send_ready(&mut self) -> Result<()> {
        while let Some(bucket) = self.buckets.get_mut(self.next) {
            match std::mem::replace(&mut bucket.state, State::Empty) {
                State::Filled { gradients } => {
                    let pending =
                        self.group.all_reduce_async(&bucket.flat, ReduceOp::Average, self.timeout)?;
                    bucket.state = State::InFlight { gradients, pending };
                    self.next += 1;
                }
                other => {
                    bucket.state = other;
                    break;
                }
            }
        }
        Ok(())
    }
}

impl Bucket {
    fn new(index: usize, shapes: BucketShapes, kind: Kind, group: &ProcessGroup) -> Result<Self> {
        if !matches!(kind, Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16) {
            return Err(CollectiveError::InvalidArgument(format!(
                "gradient buffers of kind {kind:?}: use a float kind"
            )));
        }
        let failed = CollectiveError::of_tensor("gradient buffer");
        let sizes: Vec<i64> = shapes
            .iter()
            .map(|shape| {
                shape
                    .iter()
                    .try_fold(1i64, |product, &side| product.checked_mul(side).filter(|_| side >= 0))
                    .ok_or_else(|| {
                        CollectiveError::InvalidArgument(format!("bucket {index}: shape {shape:?}"))
                    })
            })
            .collect::<Result<_>>()?;
        let elements = sizes
            .iter()
            .try_fold(0i64, |sum, &size| sum.checked_add(size))
            .ok_or_else(|| CollectiveError::InvalidArgument(format!("bucket {index} is too large")))?;
        let flat = Tensor::f_zeros([elements], (kind, group.device())).map_err(&failed)?;
        let mut windows = Vec::with_capacity(shapes.len());
        let mut start = 0;
        for (shape, size) in shapes.iter().zip(sizes) {
            windows.push(
                flat.f_narrow(0, start, size)
                    .and_then(|window| window.f_view(shape.as_slice()))
                    .map_err(&failed)?,
            );
            start += size;
        }
        Ok(Self { flat, windows, shapes, state: State::Empty })
    }

    fn fill(&mut self, index: usize, gradients: &[Tensor]) -> Result<()> {
        if !matches!(self.state, State::Empty) {
            return Err(CollectiveError::InvalidArgument(format!(
                "bucket {index} was started twice in one step"
            )));
        }
        if gradients.len() != self.shapes.len() {
            return Err(CollectiveError::InvalidArgument(format!(
                "bucket {index} has {} tensors, {} were given",
                self.shapes.len(),
                gradients.len()
            )));
        }
        for (place, (gradient, shape)) in gradients.iter().zip(&self.shapes).enumerate() {
            if !gradient.defined() || gradient.size() != *shape {
                let found =
                    if gradient.defined() { format!("{:?}", gradient.size()) } else { "none".to_owned() };
                return Err(CollectiveError::InvalidArgument(format!(
                    "bucket {index}, gradient {place}: shape {shape:?} expected, {found} given"
                )));
            }
        }
        let failed = CollectiveError::of_tensor("gradient buffer");
        tch::no_grad(|| {
            self.windows.iter_mut().zip(gradients).try_for_each(|(window, gradient)| window.f_copy_(gradient))
        })
        .map_err(failed)?;
        self.state = State::Filled { gradients: gradients.iter().map(Tensor::shallow_clone).collect() };
        Ok(())
    }

    fn scatter(&self, gradients: &mut [Tensor]) -> Result<()> {
        tch::no_grad(|| {
            gradients
                .iter_mut()
                .zip(&self.windows)
                .try_for_each(|(gradient, window)| gradient.f_copy_(window))
        })
        .map_err(CollectiveError::of_tensor("gradient buffer"))
    }
}

/// Fails on every rank unless all have the same buckets: sums of unlike buffers would mix gradients, or end a process.
fn agree_on_layout(group: &ProcessGroup, buckets: &[Bucket], kind: Kind, timeout: Duration) -> Result<()> {
    // All ranks run the same build, so the standard hasher gives equal numbers for equal layouts.
    let mut hasher = DefaultHasher::new();
    std::mem::discriminant(&kind).hash(&mut hasher);
    for bucket in buckets {
        bucket.shapes.hash(&mut hasher);
    }
    let own = hasher.finish().to_le_bytes();
    let all = group.all_gather_bytes(&own, timeout)?;
    match all.iter().position(|layout| layout.as_slice() != own.as_slice()) {
        None => Ok(()),
        Some(rank) => Err(CollectiveError::InvalidArgument(format!(
            "rank {rank} has other gradient buckets than rank {}",
            group.rank()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    const LIMIT: Duration = Duration::from_secs(5);

    fn reducer(kind: Kind) -> Result<OverlappedReducer> {
        let shapes = vec![vec![vec![2, 3]], vec![vec![4]]];
        OverlappedReducer::new(ProcessGroup::solo(Device::Cpu), shapes, kind, LIMIT)
    }

    fn gradient(shape: &[i64], kind: Kind) -> Tensor {
        Tensor::full(shape, 0.5, (kind, Device::Cpu))
    }

    #[test]
    fn gradients_of_another_kind_and_layout_come_back_as_they_were() {
        let mut reducer = reducer(Kind::Float).unwrap();
        let transposed = gradient(&[3, 2], Kind::BFloat16).transpose(0, 1);
        // Filled against the declared order.
        reducer.start(1, &[gradient(&[4], Kind::Float)]).unwrap();
        reducer.start(0, &[transposed.shallow_clone()]).unwrap();
        let _ = transposed.shallow_clone().fill_(9.0);
        reducer.finish(LIMIT).unwrap();
        assert!(transposed.equal(&gradient(&[2, 3], Kind::BFloat16)));
    }

    #[test]
    fn wrong_gradients_are_refused_by_place() {
        let mut reducer = reducer(Kind::Float).unwrap();
        let text = |result: Result<()>| result.unwrap_err().to_string();
        assert!(text(reducer.start(2, &[])).contains("bucket 2 of 2"));
        assert!(text(reducer.start(0, &[])).contains("1 tensors, 0 were given"));
        assert!(
            text(reducer.start(0, &[gradient(&[3, 2], Kind::Float)]))
                .contains("[2, 3] expected, [3, 2] given")
        );
        assert!(text(reducer.start(0, &[Tensor::new()])).contains("none given"));
        reducer.start(0, &[gradient(&[2, 3], Kind::Float)]).unwrap();
        assert!(text(reducer.start(0, &[gradient(&[2, 3], Kind::Float)])).contains("twice"));
        assert!(text(reducer.finish(LIMIT)).contains("bucket 1 was not started"));
        // Ready for the next step.
        reducer.start(0, &[gradient(&[2, 3], Kind::Float)]).unwrap();
        reducer.start(1, &[gradient(&[4], Kind::Float)]).unwrap();
        reducer.finish(LIMIT).unwrap();
    }

    #[test]
    fn buffers_that_cannot_be_are_refused() {
        assert!(matches!(reducer(Kind::Int64), Err(CollectiveError::InvalidArgument(_))));
        for shape in [vec![-1], vec![i64::MAX, 2]] {
            let made = OverlappedReducer::new(
                ProcessGroup::solo(Device::Cpu),
                vec![vec![shape]],
                Kind::Float,
                LIMIT,
            );
            assert!(matches!(made, Err(CollectiveError::InvalidArgument(_))));
        }
    }
}
