//! What trains, in flat buckets.

use tch::{Device, Kind, Tensor};

use crate::error::{ModelError, ProblemKind, Result, TensorProblem};
use crate::weights::TensorMap;

/// Elements that a parameter's start in its bucket is aligned to (64 bytes of float32).
const ALIGN: i64 = 16;

/// A parameter's name and shape.
type NamedShape = (String, Vec<i64>);

/// Is shown each parameter's name and tensor, and may replace the tensor.
pub(super) type Visitor<'a> = &'a mut dyn FnMut(String, &mut Tensor);

/// One parameter's place in its bucket.
#[derive(Debug)]
struct Slot {
    name: String,
    shape: Vec<i64>,
    offset: i64,
    len: i64,
    /// The leaf that the network computes with; a view into the bucket's values.
    leaf: Tensor,
    /// The same place in the bucket's gradients.
    grad: Tensor,
    /// A copy elsewhere that is computed with, if there is one.
    copy: Option<Tensor>,
}

/// Where a parameter is in the flat vector of a bucket, elements.
pub(super) struct Place<'a> {
    pub name: &'a str,
    pub shape: &'a [i64],
    pub bucket: usize,
    pub offset: i64,
    pub len: i64,
}

/// The parameters of one block, contiguous.
#[derive(Debug)]
pub struct Bucket {
    name: String,
    slots: Vec<Slot>,
    values: Tensor,
    grads: Tensor,
    /// A copy of the values in the dtype that they are computed with, where that is another.
    shadow: Option<Tensor>,
}

impl Bucket {
    /// `double_blocks.<i>`, `single_blocks.<i>`, `stem` or `final_layer`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All values, float32 `[n]`, padding included.
    pub fn values(&self) -> &Tensor {
        &self.values
    }

    /// All gradients, float32 `[n]`, padding (zero) included.
    pub fn grads(&self) -> &Tensor {
        &self.grads
    }

    /// The copy of [`Bucket::values`] in the dtype of the arithmetic, if there is one.
    pub(super) fn shadow(&self) -> Option<&Tensor> {
        self.shadow.as_ref()
    }

    /// Brings the copies of single parameters up to the values.
    pub(super) fn refresh_copies(&self) -> Result<()> {
        for slot in &self.slots {
            if let Some(copy) = &slot.copy {
                copy.shallow_clone().f_copy_(&slot.leaf)?;
            }
        }
        Ok(())
    }

    /// Leaves in the order of their slots.
    pub(super) fn leaves(&self) -> impl Iterator<Item = &Tensor> {
        self.slots.iter().map(|slot| &slot.leaf)
    }

    /// Stores (or adds to) the gradients of every leaf, in the order of the leaves.
    pub(super) fn take_grads(&mut self, grads: &[Tensor], accumulate: bool) -> Result<()> {
        tch::no_grad(|| {
            for (slot, grad) in self.slots.iter_mut().zip(grads) {
                match (grad.defined(), accumulate) {
                    (true, true) => drop(slot.grad.f_add_(grad)?),
                    (true, false) => slot.grad.f_copy_(grad)?,
                    (false, true) => {}
                    (false, false) => drop(slot.grad.f_zero_()?),
                }
            }
            Ok(())
        })
    }
}

/// An ordered list of named parameters, grouped by block.
#[derive(Debug)]
pub struct FlatParams {
    buckets: Vec<Bucket>,
}

impl FlatParams {
    /// Moves the visited tensors into flat buckets and leaves views with gradients in their place.
    /// `visit` must call its argument with each name and tensor, in forward order, the same every time.
    pub(super) fn adopt(device: Device, visit: &mut dyn FnMut(Visitor<'_>)) -> Result<Self> {
        let mut plan: Vec<(String, Vec<NamedShape>)> = Vec::new();
        visit(&mut |name, tensor| {
            let bucket = bucket_of(&name);
            if plan.last().is_none_or(|(last, _)| *last != bucket) {
                plan.push((bucket, Vec::new()));
            }
            if let Some((_, names)) = plan.last_mut() {
                names.push((name, tensor.size()));
            }
        });
        let mut buckets = plan
            .into_iter()
            .map(|(name, params)| Bucket::zeros(name, params, device))
            .collect::<Result<Vec<_>>>()?;
        let mut slots = buckets.iter_mut().flat_map(|bucket| bucket.slots.iter_mut());
        let mut outcome = Ok(());
        visit(&mut |name, tensor| {
            let moved = slots
                .next()
                .ok_or_else(|| ModelError::input(name.as_str(), "was visited a second time only"))
                .and_then(|slot| {
                    tch::no_grad(|| slot.leaf.f_copy_(tensor))?;
                    *tensor = slot.leaf.shallow_clone();
                    Ok(())
                });
            if let Err(error) = moved {
                outcome = Err(error);
            }
        });
        outcome?;
        Ok(Self { buckets })
    }

    /// Keeps a copy of all values in `kind` from now on; returns each parameter's part of it by name.
    pub(super) fn add_shadow(&mut self, kind: Kind) -> Result<TensorMap> {
        let mut parts = TensorMap::new();
        for bucket in &mut self.buckets {
            let shadow = tch::no_grad(|| bucket.values.f_detach()?.f_to_kind(kind))?;
            for slot in &bucket.slots {
                let part = shadow.f_narrow(0, slot.offset, slot.len)?.f_view(slot.shape.as_slice())?;
                parts.insert(slot.name.clone(), part);
            }
            bucket.shadow = Some(shadow);
        }
        Ok(parts)
    }

    /// Keeps these copies of parameters, by name, up to date from now on.
    pub(super) fn set_copies(&mut self, mut copies: TensorMap) {
        for slot in self.buckets.iter_mut().flat_map(|bucket| &mut bucket.slots) {
            slot.copy = copies.remove(&slot.name);
        }
    }

    /// Brings the copies that are computed with up to the values.
    pub(super) fn refresh_copies(&mut self) -> Result<()> {
        tch::no_grad(|| {
            for bucket in &mut self.buckets {
                if let Some(shadow) = &mut bucket.shadow {
                    shadow.f_copy_(&bucket.values)?;
                }
                bucket.refresh_copies()?;
            }
            Ok(())
        })
    }

    /// Buckets in forward order.
    pub fn buckets(&self) -> &[Bucket] {
        &self.buckets
    }

    pub(super) fn bucket_mut(&mut self, index: usize) -> Option<&mut Bucket> {
        self.buckets.get_mut(index)
    }

    pub(super) fn position(&self, bucket: &str) -> Option<usize> {
        self.buckets.iter().position(|b| b.name == bucket)
    }

    /// Where all of them lie.
    pub(super) fn device(&self) -> Device {
        self.buckets.first().map_or(Device::Cpu, |bucket| bucket.values.device())
    }

    /// Where each parameter is, in forward order.
    pub(super) fn places(&self) -> impl Iterator<Item = Place<'_>> {
        self.buckets.iter().enumerate().flat_map(|(bucket, owner)| {
            owner.slots.iter().map(move |slot| Place {
                name: &slot.name,
                shape: &slot.shape,
                bucket,
                offset: slot.offset,
                len: slot.len,
            })
        })
    }

    /// Number of parameters, padding not counted.
    pub fn parameter_count(&self) -> i64 {
        self.slots().map(|slot| slot.len).sum()
    }

    fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.buckets.iter().flat_map(|bucket| &bucket.slots)
    }

    /// Names in forward order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.slots().map(|slot| slot.name.as_str())
    }

    /// Copies of all values by name, float32: unaffected by later steps.
    pub fn values(&self) -> Result<TensorMap> {
        self.copy_flat(self.buckets.iter().map(|bucket| &bucket.values), "")
    }

    /// Copies of all gradients by name, float32.
    pub fn grads(&self) -> Result<TensorMap> {
        self.copy_flat(self.buckets.iter().map(|bucket| &bucket.grads), "")
    }

    /// Named copies out of a flat vector laid out as bucket `index` is (its gradients before a reduction, say).
    pub fn named(&self, index: usize, flat: &Tensor) -> Result<TensorMap> {
        let bucket = self
            .buckets
            .get(index)
            .ok_or_else(|| ModelError::input("bucket", format!("{index} does not exist")))?;
        bucket.named(flat, "")
    }

    /// Overwrites all values from tensors by name; missing, unexpected and misshapen ones are listed at
    /// once, and then nothing is changed.
    pub fn load_values(&mut self, tensors: &TensorMap, origin: &str) -> Result<()> {
        let targets: Vec<_> = self.buckets.iter().map(|bucket| bucket.values.shallow_clone()).collect();
        self.fill_flat(&targets, tensors, "", origin)?;
        self.refresh_copies()
    }

    /// L2 norm over all gradients, 0-dimensional float32.
    pub fn grad_norm(&self) -> Result<Tensor> {
        tch::no_grad(|| {
            let norms =
                self.buckets.iter().map(|bucket| bucket.grads.f_norm()).collect::<Result<Vec<_>, _>>()?;
            Ok(Tensor::f_stack(&norms, 0)?.f_norm()?)
        })
    }

    /// Zero vectors of the buckets' sizes: moments and averages.
    pub(super) fn zeros_like(&self) -> Result<Vec<Tensor>> {
        self.buckets.iter().map(|bucket| Ok(bucket.values.f_zeros_like()?)).collect()
    }

    /// Named copies out of one flat vector per bucket; names get `prefix`.
    pub(super) fn copy_flat<'a>(
        &self,
        flats: impl Iterator<Item = &'a Tensor>,
        prefix: &str,
    ) -> Result<TensorMap> {
        let mut map = TensorMap::new();
        for (bucket, flat) in self.buckets.iter().zip(flats) {
            map.extend(bucket.named(flat, prefix)?);
        }
        Ok(map)
    }

    /// The inverse of [`FlatParams::copy_flat`]; nothing is changed unless everything fits.
    pub(super) fn fill_flat(
        &self,
        flats: &[Tensor],
        tensors: &TensorMap,
        prefix: &str,
        origin: &str,
    ) -> Result<()> {
        self.check_flat(tensors, prefix, origin)?;
        tch::no_grad(|| {
            for (bucket, flat) in self.buckets.iter().zip(flats) {
                for slot in &bucket.slots {
                    if let Some(tensor) = tensors.get(&format!("{prefix}{}", slot.name)) {
                        flat.f_narrow(0, slot.offset, slot.len)?
                            .f_view(slot.shape.as_slice())?
                            .f_copy_(tensor)?;
                    }
                }
            }
            Ok(())
        })
    }

    /// Of `tensors`, those that start with `prefix` must be exactly ours; every problem is listed.
    pub(super) fn check_flat(&self, tensors: &TensorMap, prefix: &str, origin: &str) -> Result<()> {
        let mut problems = Vec::new();
        let mut note = |tensor: String, kind| problems.push(TensorProblem { tensor, kind });
        for slot in self.slots() {
            let name = format!("{prefix}{}", slot.name);
            match tensors.get(&name) {
                None => note(name, ProblemKind::Missing),
                Some(tensor) if tensor.size() != slot.shape => {
                    let (found, expected) = (tensor.size(), slot.shape.clone());
                    note(name, ProblemKind::Shape { found, expected });
                }
                Some(_) => {}
            }
        }
        let known: std::collections::BTreeSet<_> = self.names().collect();
        for name in tensors.keys() {
            let foreign = |bare: &str| !known.contains(bare);
            if name.strip_prefix(prefix).is_some_and(foreign) {
                note(name.clone(), ProblemKind::Unexpected);
            }
        }
        if problems.is_empty() {
            Ok(())
        } else {
            Err(ModelError::Weights { origin: origin.to_owned(), problems })
        }
    }
}

impl Bucket {
    fn named(&self, flat: &Tensor, prefix: &str) -> Result<TensorMap> {
        let mut map = TensorMap::new();
        for slot in &self.slots {
            let part = flat.f_narrow(0, slot.offset, slot.len)?.f_view(slot.shape.as_slice())?;
            map.insert(format!("{prefix}{}", slot.name), copy_of(&part)?);
        }
        Ok(map)
    }

    fn zeros(name: String, params: Vec<NamedShape>, device: Device) -> Result<Self> {
        let lens: Vec<i64> = params.iter().map(|(_, shape)| shape.iter().product()).collect();
        let padded = |len: i64| (len + ALIGN - 1) / ALIGN * ALIGN;
        let total = lens.iter().map(|len| padded(*len)).sum::<i64>();
        let values = Tensor::f_zeros([total], (Kind::Float, device))?;
        let grads = Tensor::f_zeros([total], (Kind::Float, device))?;
        let mut offset = 0;
        let mut slots = Vec::with_capacity(params.len());
        for ((name, shape), len) in params.into_iter().zip(lens) {
            let part = |flat: &Tensor| -> Result<Tensor> {
                Ok(flat.f_narrow(0, offset, len)?.f_view(shape.as_slice())?)
            };
            let leaf = part(&values)?.f_detach()?.f_set_requires_grad(true)?;
            let grad = part(&grads)?;
            slots.push(Slot { name, shape, offset, len, leaf, grad, copy: None });
            offset += padded(len);
        }
        Ok(Self { name, slots, values, grads, shadow: None })
    }
}

/// A tensor of its own with the values of `tensor`.
pub(super) fn copy_of(tensor: &Tensor) -> Result<Tensor> {
    tch::no_grad(|| {
        let mut copy = tensor.f_empty_like()?;
        copy.f_copy_(tensor)?;
        Ok(copy)
    })
}

/// The bucket of a published weight name.
fn bucket_of(name: &str) -> String {
    let mut parts = name.split('.');
    match (parts.next(), parts.next()) {
        (Some(sort @ ("double_blocks" | "single_blocks")), Some(index)) => {
            format!("{sort}.{index}")
        }
        (Some("final_layer"), _) => "final_layer".to_owned(),
        _ => "stem".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_that_are_no_numbers_leave_nothing_behind() {
        let mut weight = Tensor::zeros([3], (Kind::Float, Device::Cpu));
        let mut visit = |visitor: Visitor<'_>| visitor("double_blocks.0.weight".to_owned(), &mut weight);
        let mut params = FlatParams::adopt(Device::Cpu, &mut visit).unwrap();
        let take = |params: &mut FlatParams, grad: &[f32]| {
            params.bucket_mut(0).unwrap().take_grads(&[Tensor::from_slice(grad)], false).unwrap();
        };
        take(&mut params, &[f32::NAN, 0.0, 0.0]);
        assert!(params.grad_norm().unwrap().double_value(&[]).is_nan());
        take(&mut params, &[3.0, 4.0, 0.0]);
        assert_eq!(params.grad_norm().unwrap().double_value(&[]), 5.0);
    }
}
