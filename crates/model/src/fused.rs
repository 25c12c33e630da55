//! Passes over activations that eager operations would make several of: what an explicit backward pass is made of besides
//! matrix products.
//!
//! ```text
//!                        ┌─ eager    libtorch's operations, on any device
//!   Fused::norm_modulate ┼─ cpu      kernels/*.h as C++, for the processor's best instructions
//!   split_heads, gelu, … └─ cuda     the same source, compiled by NVRTC when it is first needed
//! ```
//!
//! Arithmetic is float32 whatever is stored. Nothing here records gradients. Rows are tokens; a *stream* is the tokens of text or
//! of images, which share weights but meet in attention.

#![allow(unsafe_code, reason = "the kernels take pointers")]

pub mod compare;
mod cpu;
mod cuda;
mod eager;
mod passes;
pub mod profile;
#[cfg(test)]
mod tests;

use std::ffi::c_int;

use tch::{Device, Kind, Tensor};

pub use cpu::Variant;
use cuda::CudaKernels;
pub(crate) use passes::AdamWNumbers;

use crate::error::{ModelError, Result};
use crate::flux::RopeTable;

/// Whether fused passes are used where there are some.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kernels {
    /// Libtorch's operations alone.
    Eager,
    #[default]
    Fused,
}

/// Why a device has no fused passes although it might; none if it has them. They are compiled for it when this asks first.
pub fn unavailable(device: Device) -> Option<String> {
    match device {
        Device::Cuda(index) => CudaKernels::of(index).err(),
        _ => None,
    }
}

/// Where the passes run.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fused {
    Eager,
    Cpu(Variant),
    Cuda(&'static CudaKernels),
}

/// Shift, scale and gate of one sublayer: columns of the output of a modulation Linear, `[batch, n · hidden]`.
#[derive(Debug)]
pub(crate) struct ModulationColumns {
    all: Tensor,
    first: i64,
    hidden: i64,
}

impl ModulationColumns {
    /// The `triple`-th (shift, scale, gate) of `all`.
    pub fn new(all: &Tensor, triple: i64, hidden: i64) -> Self {
        Self { all: all.shallow_clone(), first: 3 * triple * hidden, hidden }
    }

    /// `[batch, 1, hidden]`
    fn column(&self, index: i64) -> Result<Tensor> {
        Ok(self.all.f_narrow(-1, self.first + index * self.hidden, self.hidden)?.f_unsqueeze(1)?)
    }

    fn pointer(&self, index: i64) -> *const std::ffi::c_void {
        offset(&self.all, self.first + index * self.hidden)
    }

    fn stride(&self) -> i64 {
        self.all.size().last().copied().unwrap_or(0)
    }
}

/// Mean and inverse deviation of each token, float32 `[tokens of all samples]`.
#[derive(Debug)]
pub(crate) struct NormStats {
    mean: Tensor,
    rstd: Tensor,
}

/// Queries, keys and values, or their gradients: each `[batch, heads, tokens, head width]`, contiguous.
#[derive(Debug)]
pub(crate) struct Heads {
    pub query: Tensor,
    pub key: Tensor,
    pub value: Tensor,
}

/// One stream's place among all tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StreamPlace {
    pub batch: i64,
    pub tokens: i64,
    pub first_token: i64,
    pub all_tokens: i64,
    pub heads: i64,
    pub head_width: i64,
}

/// The norm of queries and keys, and where tokens are: what [`Fused::split_heads`] applies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadNorm<'a> {
    /// Float32 `[head width]`.
    pub query_scale: &'a Tensor,
    pub key_scale: &'a Tensor,
    pub rope: &'a RopeTable,
    pub eps: f64,
}

/// Flat vectors of one length, float32 but for the shadow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AdamWVectors<'a> {
    pub values: &'a Tensor,
    pub grads: &'a Tensor,
    /// One number on the same device that multiplies the gradients.
    pub factor: Option<&'a Tensor>,
    pub moments: &'a Tensor,
    pub squares: &'a Tensor,
    /// Follows the values.
    pub average: Option<&'a Tensor>,
    /// The values in bfloat16.
    pub shadow: Option<&'a Tensor>,
}

impl Fused {
    /// What serves tensors of `kind` on `device`.
    pub fn choose(kernels: Kernels, device: Device, kind: Kind) -> Self {
        match (kernels, device, kind) {
            (Kernels::Fused, Device::Cpu, Kind::Float | Kind::BFloat16) => Self::Cpu(Variant::chosen()),
            (Kernels::Fused, Device::Cuda(index), Kind::Float | Kind::BFloat16) => {
                CudaKernels::of(index).map_or(Self::Eager, Self::Cuda)
            }
            _ => Self::Eager,
        }
    }

    /// Does all pieces of a pass whose tensors fit it.
    fn run<P: cpu::Pass + cuda::Kernel>(self, pass: &P, pieces: i64) -> Result<()> {
        match self {
            Self::Eager => Err(ModelError::input("kernels", "are not chosen")),
            Self::Cpu(variant) => {
                run_on_cpu(variant, pass, pieces);
                Ok(())
            }
            // SAFETY: every caller has checked that its tensors are as large as the pieces need and of the dtype that `half` says,
            // and libtorch's allocator frees them in the order of its stream.
            Self::Cuda(kernels) => unsafe { kernels.run(pass, pieces) },
        }
    }

    /// (1 + scale) · layer_norm(x) + shift of `x` `[batch, tokens, hidden]`.
    pub fn norm_modulate(
        self,
        x: &Tensor,
        modulation: &ModulationColumns,
        eps: f64,
    ) -> Result<(Tensor, NormStats)> {
        let _timed = profile::part(profile::NORMS, x.device());
        if let Self::Eager = self {
            return eager::norm_modulate(x, modulation, eps);
        }
        let rows = Rows::of(x, modulation)?;
        let out = x.f_empty_like()?;
        let stat = || Tensor::f_empty([rows.count], (Kind::Float, x.device()));
        let stats = NormStats { mean: stat()?, rstd: stat()? };
        let pass = passes::NormModulate {
            x: offset(x, 0),
            shift: modulation.pointer(0),
            scale: modulation.pointer(1),
            out: offset_mut(&out, 0),
            mean: floats_mut(&stats.mean),
            rstd: floats_mut(&stats.rstd),
            width: rows.width,
            rows_per_sample: rows.per_sample,
            modulation_stride: modulation.stride(),
            eps: eps as f32,
            half: half(x),
        };
        self.run(&pass, rows.count)?;
        Ok((out, stats))
    }

    /// `residual` plus the gradient of `x` through [`Fused::norm_modulate`], whose `stats` these are.
    pub fn norm_modulate_backward(
        self,
        grad: &Tensor,
        x: &Tensor,
        modulation: &ModulationColumns,
        stats: &NormStats,
        residual: &Tensor,
    ) -> Result<Tensor> {
        let _timed = profile::part(profile::NORMS, x.device());
        if let Self::Eager = self {
            return eager::norm_modulate_backward(grad, x, modulation, stats, residual);
        }
        let rows = Rows::of(x, modulation)?;
        alike(x, &[grad, residual])?;
        let grad_x = x.f_empty_like()?;
        let pass = passes::NormModulateBackward {
            grad: offset(grad, 0),
            x: offset(x, 0),
            scale: modulation.pointer(1),
            residual: offset(residual, 0),
            grad_x: offset_mut(&grad_x, 0),
            mean: floats(&stats.mean),
            rstd: floats(&stats.rstd),
            width: rows.width,
            rows_per_sample: rows.per_sample,
            modulation_stride: modulation.stride(),
            half: half(x),
        };
        self.run(&pass, rows.count)?;
        Ok(grad_x)
    }

    /// x + gate · update, for `x` `[batch, tokens, hidden]` and `update` `[batch · tokens, hidden]` with columns side by side.
    pub fn gated_residual(
        self,
        x: &Tensor,
        modulation: &ModulationColumns,
        update: &Tensor,
    ) -> Result<Tensor> {
        let _timed = profile::part(profile::GATES, x.device());
        if let Self::Eager = self {
            return eager::gated_residual(x, modulation, update);
        }
        let rows = Rows::of(x, modulation)?;
        rows.check_update(update, x)?;
        let out = x.f_empty_like()?;
        let pass = passes::GatedResidual {
            x: offset(x, 0),
            gate: modulation.pointer(2),
            update: offset(update, 0),
            out: offset_mut(&out, 0),
            width: rows.width,
            rows_per_sample: rows.per_sample,
            modulation_stride: modulation.stride(),
            update_stride: update.stride()[0],
            half: half(x),
        };
        self.run(&pass, rows.count)?;
        Ok(out)
    }

    /// Writes gate · grad, the gradient of [`Fused::gated_residual`]'s update, into `out`, laid out as that is.
    pub fn gate_backward(self, grad: &Tensor, modulation: &ModulationColumns, out: &Tensor) -> Result<()> {
        let _timed = profile::part(profile::GATES, grad.device());
        if let Self::Eager = self {
            return eager::gate_backward(grad, modulation, out);
        }
        let rows = Rows::of(grad, modulation)?;
        rows.check_update(out, grad)?;
        let pass = passes::GateBackward {
            grad: offset(grad, 0),
            gate: modulation.pointer(2),
            grad_update: offset_mut(out, 0),
            width: rows.width,
            rows_per_sample: rows.per_sample,
            modulation_stride: modulation.stride(),
            update_stride: out.stride()[0],
            half: half(grad),
        };
        self.run(&pass, rows.count)
    }

    /// Writes one stream's queries, keys (normed and rotated) and values into `out`. `rows` `[batch · tokens, width]` have
    /// (q | k | v) × head × channel in their first columns, and their columns lie side by side.
    pub fn split_heads(
        self,
        rows: &Tensor,
        place: &StreamPlace,
        norm: &HeadNorm<'_>,
        out: &Heads,
    ) -> Result<()> {
        let _timed = profile::part(profile::HEADS, rows.device());
        if let Self::Eager = self {
            return eager::split_heads(rows, place, norm, out);
        }
        place.check(rows, 3)?;
        place.check_heads(&[&out.query, &out.key, &out.value], rows)?;
        let rotations = place.rotations(norm)?;
        let pass = passes::SplitHeads {
            rows: offset(rows, 0),
            query: offset_mut(&out.query, 0),
            key: offset_mut(&out.key, 0),
            value: offset_mut(&out.value, 0),
            query_scale: floats(norm.query_scale),
            key_scale: floats(norm.key_scale),
            rotations: floats(&rotations.table),
            row_stride: rows.stride()[0],
            tokens: place.tokens,
            first_token: place.first_token,
            all_tokens: place.all_tokens,
            heads: place.heads,
            head_width: place.head_width,
            rotation_stride: rotations.stride,
            eps: norm.eps as f32,
            half: half(rows),
        };
        self.run(&pass, place.batch * place.tokens)?;
        Ok(())
    }

    /// Writes the gradient of [`Fused::split_heads`]'s `rows` into `grad_rows`, laid out alike.
    pub fn split_heads_backward(
        self,
        grads: &Heads,
        rows: &Tensor,
        place: &StreamPlace,
        norm: &HeadNorm<'_>,
        grad_rows: &Tensor,
    ) -> Result<()> {
        let _timed = profile::part(profile::HEADS, rows.device());
        if let Self::Eager = self {
            return eager::split_heads_backward(grads, rows, place, norm, grad_rows);
        }
        place.check(rows, 3)?;
        place.check(grad_rows, 3)?;
        place.check_heads(&[&grads.query, &grads.key, &grads.value], rows)?;
        let rotations = place.rotations(norm)?;
        let pass = passes::SplitHeadsBackward {
            grad_query: offset(&grads.query, 0),
            grad_key: offset(&grads.key, 0),
            grad_value: offset(&grads.value, 0),
            rows: offset(rows, 0),
            grad_rows: offset_mut(grad_rows, 0),
            query_scale: floats(norm.query_scale),
            key_scale: floats(norm.key_scale),
            rotations: floats(&rotations.table),
            row_stride: rows.stride()[0],
            grad_stride: grad_rows.stride()[0],
            tokens: place.tokens,
            first_token: place.first_token,
            all_tokens: place.all_tokens,
            heads: place.heads,
            head_width: place.head_width,
            rotation_stride: rotations.stride,
            eps: norm.eps as f32,
            half: half(rows),
        };
        self.run(&pass, place.batch * place.tokens)?;
        Ok(())
    }

    /// Writes one stream of `heads` `[batch, heads, tokens, head width]` into the first columns of `rows`, head × channel.
    pub fn heads_to_rows(self, heads: &Tensor, place: &StreamPlace, rows: &Tensor) -> Result<()> {
        self.move_heads(heads, place, rows, true)
    }

    /// The inverse of [`Fused::heads_to_rows`].
    pub fn rows_to_heads(self, rows: &Tensor, place: &StreamPlace, heads: &Tensor) -> Result<()> {
        self.move_heads(heads, place, rows, false)
    }

    fn move_heads(self, heads: &Tensor, place: &StreamPlace, rows: &Tensor, to_rows: bool) -> Result<()> {
        let _timed = profile::part(profile::HEADS, rows.device());
        if let Self::Eager = self {
            return eager::move_heads(heads, place, rows, to_rows);
        }
        place.check(rows, 1)?;
        place.check_heads(&[heads], rows)?;
        let pass = passes::MoveHeads {
            heads_first: offset_mut(heads, 0),
            rows: offset_mut(rows, 0),
            row_stride: rows.stride()[0],
            tokens: place.tokens,
            first_token: place.first_token,
            all_tokens: place.all_tokens,
            heads: place.heads,
            head_width: place.head_width,
            to_rows: to_rows.into(),
            half: half(rows),
        };
        self.run(&pass, place.batch * place.tokens)?;
        Ok(())
    }

    /// GELU in its tanh form of the rows `x` into `out`, both `[rows, width]` with columns side by side.
    pub fn gelu(self, x: &Tensor, out: &Tensor) -> Result<()> {
        let _timed = profile::part(profile::GELU, x.device());
        if let Self::Eager = self {
            return eager::gelu(x, out);
        }
        let (rows, width) = of_rows(x, &[out])?;
        let pass = passes::Gelu {
            x: offset(x, 0),
            out: offset_mut(out, 0),
            x_stride: x.stride()[0],
            out_stride: out.stride()[0],
            width,
            half: half(x),
        };
        self.run(&pass, rows)?;
        Ok(())
    }

    /// The gradient of [`Fused::gelu`]'s `x` into `grad_x`.
    pub fn gelu_backward(self, grad: &Tensor, x: &Tensor, grad_x: &Tensor) -> Result<()> {
        let _timed = profile::part(profile::GELU, x.device());
        if let Self::Eager = self {
            return eager::gelu_backward(grad, x, grad_x);
        }
        let (rows, width) = of_rows(x, &[grad, grad_x])?;
        let pass = passes::GeluBackward {
            grad: offset(grad, 0),
            x: offset(x, 0),
            grad_x: offset_mut(grad_x, 0),
            grad_stride: grad.stride()[0],
            x_stride: x.stride()[0],
            grad_x_stride: grad_x.stride()[0],
            width,
            half: half(x),
        };
        self.run(&pass, rows)?;
        Ok(())
    }

    /// One step of AdamW, with what belongs to it. False, and nothing is done, where there is no kernel for it.
    pub fn adamw(self, vectors: &AdamWVectors<'_>, numbers: AdamWNumbers) -> Result<bool> {
        let AdamWVectors { values, grads, factor, moments, squares, average, shadow } = *vectors;
        if matches!(self, Self::Eager) || shadow.is_some_and(|shadow| shadow.kind() != Kind::BFloat16) {
            return Ok(false);
        }
        alike(values, &[grads, moments, squares])?;
        average.map_or(Ok(()), |average| alike(values, &[average]))?;
        let count = values.size1()?;
        let is_number = |factor: &Tensor| {
            factor.numel() == 1 && factor.kind() == Kind::Float && factor.device() == values.device()
        };
        if values.kind() != Kind::Float
            || shadow.is_some_and(|s| s.size() != [count] || !s.is_contiguous())
            || !factor.is_none_or(is_number)
        {
            return Err(ModelError::input("values", "are not float32, or what goes with them does not fit"));
        }
        let pass = passes::AdamW {
            values: floats_mut(values),
            grads: floats(grads),
            factor: factor.map_or(std::ptr::null(), floats),
            moments: floats_mut(moments),
            squares: floats_mut(squares),
            average: average.map_or(std::ptr::null_mut(), floats_mut),
            shadow: shadow.map_or(std::ptr::null_mut(), |shadow| offset_mut(shadow, 0)),
            count,
            numbers,
        };
        self.run(&pass, (count + passes::ADAMW_PIECE - 1) / passes::ADAMW_PIECE)?;
        Ok(true)
    }

    /// Softmax of `scale` · `scores` over the last axis, in place; contiguous.
    pub fn softmax(self, scores: &Tensor, scale: f64) -> Result<()> {
        let Self::Cpu(variant) = self else { return eager::softmax(scores, scale) };
        let (rows, width) = of_contiguous(scores, &[])?;
        let pass =
            passes::Softmax { scores: offset_mut(scores, 0), width, scale: scale as f32, half: half(scores) };
        run_on_cpu(variant, &pass, rows);
        Ok(())
    }

    /// Turns `grad`, the gradient of [`Fused::softmax`]'s result `probabilities`, into that of its input.
    pub fn softmax_backward(self, probabilities: &Tensor, grad: &Tensor, scale: f64) -> Result<()> {
        let Self::Cpu(variant) = self else { return eager::softmax_backward(probabilities, grad, scale) };
        let (rows, width) = of_contiguous(probabilities, &[grad])?;
        let pass = passes::SoftmaxBackward {
            probabilities: offset(probabilities, 0),
            grad: offset_mut(grad, 0),
            width,
            scale: scale as f32,
            half: half(grad),
        };
        run_on_cpu(variant, &pass, rows);
        Ok(())
    }
}

/// Tokens of all samples, and which share a row of the modulation.
struct Rows {
    count: i64,
    width: i64,
    per_sample: i64,
}

impl Rows {
    /// Of contiguous `x` `[batch, tokens, hidden]`.
    fn of(x: &Tensor, modulation: &ModulationColumns) -> Result<Self> {
        let (batch, tokens, width) = x.size3()?;
        let fits = x.is_contiguous()
            && modulation.all.is_contiguous()
            && modulation.all.size().first() == Some(&batch)
            && modulation.hidden == width
            && modulation.all.f_kind()? == x.f_kind()?;
        if !fits {
            return Err(ModelError::input("x", format!("{:?} does not fit its modulation", x.size())));
        }
        Ok(Self { count: batch * tokens, width, per_sample: tokens })
    }

    /// `update` has a row for each token of `x`.
    fn check_update(&self, update: &Tensor, x: &Tensor) -> Result<()> {
        let fits = update.size() == [self.count, self.width]
            && update.stride().last() == Some(&1)
            && update.kind() == x.kind()
            && update.device() == x.device();
        if fits {
            Ok(())
        } else {
            Err(ModelError::input("update", format!("{:?} does not fit {:?}", update.size(), x.size())))
        }
    }
}

impl StreamPlace {
    fn hidden(&self) -> i64 {
        self.heads * self.head_width
    }

    /// `rows` has a row a token, with `parts` times the hidden width in its first columns.
    fn check(&self, rows: &Tensor, parts: i64) -> Result<()> {
        let fits = matches!(rows.size()[..], [count, width] if count == self.batch * self.tokens && width >= parts * self.hidden())
            && rows.stride().last() == Some(&1)
            && self.first_token + self.tokens <= self.all_tokens;
        if fits {
            Ok(())
        } else {
            Err(ModelError::input("rows", format!("{:?} do not fit {self:?}", rows.size())))
        }
    }

    fn check_heads(&self, tensors: &[&Tensor], rows: &Tensor) -> Result<()> {
        let shape = [self.batch, self.heads, self.all_tokens, self.head_width];
        let fits = |tensor: &&Tensor| {
            tensor.size() == shape && tensor.is_contiguous() && tensor.kind() == rows.kind()
        };
        if tensors.iter().all(fits) {
            Ok(())
        } else {
            Err(ModelError::input("heads", format!("do not fit {self:?}")))
        }
    }

    fn rotations(&self, norm: &HeadNorm<'_>) -> Result<Rotations> {
        norm.rope.check(self.batch, self.all_tokens, self.head_width)?;
        let table = norm.rope.pairs()?;
        let scales = [norm.query_scale, norm.key_scale];
        if !table.is_contiguous()
            || scales.iter().any(|s| s.kind() != Kind::Float || s.size() != [self.head_width])
        {
            return Err(ModelError::input("scales", "are not float32, one a channel of a head"));
        }
        let shared = table.size()[0] == 1;
        Ok(Rotations { table, stride: if shared { 0 } else { self.all_tokens * self.head_width } })
    }
}

struct Rotations {
    /// Float32 `[batch or 1, 1, tokens, head width / 2, 2]`.
    table: Tensor,
    /// From a sample's to the next.
    stride: i64,
}

/// Rows and width of `[rows, width]` with columns side by side, the same for all.
fn of_rows(x: &Tensor, others: &[&Tensor]) -> Result<(i64, i64)> {
    let (rows, width) = x.size2()?;
    let fits = |tensor: &Tensor| {
        tensor.size() == [rows, width] && tensor.stride().last() == Some(&1) && tensor.kind() == x.kind()
    };
    if fits(x) && others.iter().all(|other| fits(other)) {
        Ok((rows, width))
    } else {
        Err(ModelError::input("rows", format!("{:?} and the others do not fit each other", x.size())))
    }
}

fn of_contiguous(x: &Tensor, others: &[&Tensor]) -> Result<(i64, i64)> {
    alike(x, others)?;
    let width = x.size().last().copied().unwrap_or(1).max(1);
    Ok((x.numel() as i64 / width, width))
}

/// All are contiguous and of the shape and dtype of `x`.
fn alike(x: &Tensor, others: &[&Tensor]) -> Result<()> {
    let fits = |tensor: &Tensor| {
        tensor.size() == x.size()
            && tensor.is_contiguous()
            && tensor.kind() == x.kind()
            && tensor.device() == x.device()
    };
    if fits(x) && others.iter().all(|other| fits(other)) {
        Ok(())
    } else {
        Err(ModelError::input("activations", format!("{:?} and the others do not fit each other", x.size())))
    }
}

fn half(tensor: &Tensor) -> c_int {
    (tensor.kind() == Kind::BFloat16).into()
}

fn offset(tensor: &Tensor, elements: i64) -> *const std::ffi::c_void {
    offset_mut(tensor, elements).cast_const()
}

fn offset_mut(tensor: &Tensor, elements: i64) -> *mut std::ffi::c_void {
    let bytes = usize::try_from(elements).unwrap_or(0) * tensor.kind().elt_size_in_bytes();
    tensor.data_ptr().cast::<u8>().wrapping_add(bytes).cast()
}

fn floats(tensor: &Tensor) -> *const f32 {
    floats_mut(tensor).cast_const()
}

fn floats_mut(tensor: &Tensor) -> *mut f32 {
    tensor.data_ptr().cast()
}

fn run_on_cpu<P: cpu::Pass>(variant: Variant, pass: &P, pieces: i64) {
    // SAFETY: every caller above has checked that its tensors are as large as the pieces need, of the dtype that `half` says,
    // and on the CPU; they live until the call returns.
    unsafe { cpu::run(variant, pass, pieces) }
}
