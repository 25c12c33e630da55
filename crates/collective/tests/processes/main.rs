//! Groups of real processes: results, overlap, refused calls; what happens when a rank is lost is in `failures`, and what
//! leaving promises, over either backend, in `leaving`.

mod failures;
mod leaving;
mod ranks;

use anyhow::{Result, bail, ensure};
use crescendo_collective::{CollectiveError, MAX_GATHER_BYTES, ReduceOp};
use ranks::{LIMIT, together};
use tch::{Device, Kind, Tensor};

fn values(tensor: &Tensor) -> Result<Vec<f64>> {
    Ok(Vec::try_from(tensor.to_kind(Kind::Double).flatten(0, -1))?)
}

#[test]
fn sums_averages_and_maxima_are_right_in_every_kind() -> Result<()> {
    together("sums_averages_and_maxima_are_right_in_every_kind", &[2, 3], |group| {
        let (rank, world) = (group.rank() as f64, group.world() as f64);
        let all: f64 = (0..group.world()).map(|rank| rank as f64 + 1.0).sum();
        // Small whole numbers are exact in every kind.
        for kind in
            [Kind::Float, Kind::Double, Kind::Half, Kind::BFloat16, Kind::Int, Kind::Int64, Kind::Uint8]
        {
            let tensor = Tensor::ones([5, 3], (kind, Device::Cpu)) * (rank + 1.0);
            let tensor = tensor.to_kind(kind);
            group.all_reduce(&tensor, ReduceOp::Sum, LIMIT)?;
            ensure!(values(&tensor)? == vec![all; 15], "{kind:?}: {tensor}");
        }
        let votes = Tensor::from_slice(&[rank as i64, -(rank as i64), 7]);
        group.all_reduce(&votes, ReduceOp::Maximum, LIMIT)?;
        ensure!(values(&votes)? == vec![world - 1.0, 0.0, 7.0], "the largest of each: {votes}");
        for kind in [Kind::Float, Kind::Double] {
            let tensor = Tensor::arange(100_000, (kind, Device::Cpu)) * (rank + 1.0);
            group.all_reduce(&tensor, ReduceOp::Average, LIMIT)?;
            for place in [0i64, 1, 54_321, 99_999] {
                let (found, wanted) = (tensor.double_value(&[place]), place as f64 * all / world);
                ensure!(
                    (found - wanted).abs() <= 1e-6 * wanted,
                    "{kind:?} at {place}: {found}, not {wanted}"
                );
            }
        }
        let empty = Tensor::zeros([0], (Kind::Float, Device::Cpu));
        group.all_reduce(&empty, ReduceOp::Average, LIMIT)?;
        Ok(())
    })
}

#[test]
fn results_have_the_same_bits_on_every_rank() -> Result<()> {
    together("results_have_the_same_bits_on_every_rank", &[3], |group| {
        tch::manual_seed(group.rank() as i64);
        let tensor = Tensor::randn([4099], (Kind::Float, Device::Cpu));
        let again = tensor.copy();
        group.all_reduce(&tensor, ReduceOp::Average, LIMIT)?;
        group.all_reduce(&again, ReduceOp::Average, LIMIT)?;
        ensure!(tensor == again, "two runs differ");
        let mine: Vec<f32> = Vec::try_from(&tensor)?;
        let bytes: Vec<u8> = mine.iter().flat_map(|value| value.to_le_bytes()).collect();
        let all = group.all_gather_bytes(&bytes, LIMIT)?;
        ensure!(all.iter().all(|rank| *rank == bytes), "ranks differ");
        Ok(())
    })
}

#[test]
fn broadcast_gather_and_barrier_reach_every_rank() -> Result<()> {
    together("broadcast_gather_and_barrier_reach_every_rank", &[2, 3], |group| {
        for root in 0..group.world() {
            let tensor = Tensor::full([7], group.rank() as f64, (Kind::Float, Device::Cpu));
            group.broadcast(&tensor, root, LIMIT)?;
            ensure!(values(&tensor)? == vec![root as f64; 7], "root {root}: {tensor}");
        }
        group.barrier(LIMIT)?;
        let own = vec![group.rank() as u8; group.rank() * 3];
        let wanted: Vec<Vec<u8>> = (0..group.world()).map(|rank| vec![rank as u8; rank * 3]).collect();
        ensure!(group.all_gather_bytes(&own, LIMIT)? == wanted);
        let wanted: Vec<Vec<f64>> =
            (0..group.world()).map(|rank| vec![rank as f64 + 0.1, f64::MIN]).collect();
        ensure!(group.all_gather_f64(&[group.rank() as f64 + 0.1, f64::MIN], LIMIT)? == wanted);
        ensure!(group.all_gather_bytes(&[], LIMIT)? == vec![Vec::<u8>::new(); group.world()]);
        Ok(())
    })
}

#[test]
fn wrong_calls_are_refused_and_the_group_goes_on() -> Result<()> {
    together("wrong_calls_are_refused_and_the_group_goes_on", &[2], |group| {
        let float = (Kind::Float, Device::Cpu);
        let refused = |result: crescendo_collective::Result<()>, word: &str| match result {
            Err(CollectiveError::InvalidArgument(text)) if text.contains(word) => Ok(()),
            other => bail!("`{word}` expected, found {other:?}"),
        };
        let strided = Tensor::zeros([4, 4], float).transpose(0, 1);
        refused(group.all_reduce(&strided, ReduceOp::Sum, LIMIT), "contiguous")?;
        let complex = Tensor::zeros([4], (Kind::ComplexFloat, Device::Cpu));
        refused(group.all_reduce(&complex, ReduceOp::Sum, LIMIT), "ComplexFloat")?;
        let whole = Tensor::zeros([4], (Kind::Int64, Device::Cpu));
        refused(group.all_reduce(&whole, ReduceOp::Average, LIMIT), "average")?;
        refused(group.all_reduce(&Tensor::new(), ReduceOp::Sum, LIMIT), "undefined")?;
        refused(group.broadcast(&whole, 2, LIMIT), "root 2")?;
        refused(group.all_gather_bytes(&vec![0; MAX_GATHER_BYTES + 1], LIMIT).map(drop), "at most")?;
        group.barrier(LIMIT)?;
        Ok(())
    })
}

#[test]
fn operations_in_the_background_overlap_and_keep_apart() -> Result<()> {
    together("operations_in_the_background_overlap_and_keep_apart", &[2, 3], |group| {
        let share = (1..=group.world()).sum::<usize>() as f64;
        let tensors: Vec<Tensor> = (0..12)
            .map(|place| {
                let sign = (place + 1) as f64 * (group.rank() + 1) as f64;
                Tensor::full([1000 * (place + 1)], sign, (Kind::Float, Device::Cpu))
            })
            .collect();
        let pending = tensors
            .iter()
            .map(|tensor| group.all_reduce_async(tensor, ReduceOp::Sum, LIMIT))
            .collect::<crescendo_collective::Result<Vec<_>>>()?;
        // Waited for in the other order: none depends on being asked.
        for (place, one) in pending.into_iter().enumerate().rev() {
            one.wait(LIMIT)?;
            let wanted = (place + 1) as f64 * share;
            ensure!(tensors[place].eq(wanted).all().int64_value(&[]) == 1, "operation {place}");
        }
        Ok(())
    })
}
