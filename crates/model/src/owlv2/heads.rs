//! What is read off each cell: how well each query fits it, its box, and how much of an object it is.

use tch::{Device, Kind, Tensor};

use crate::error::Result;
use crate::layers::{Linear, cast};
use crate::params::{Init, ParamSource};

/// Logit of a query that is padding: the lowest float32.
const PADDING_LOGIT: f64 = f32::MIN as f64;
/// Added to lengths before dividing by them.
const LENGTH_EPS: f64 = 1e-6;
/// Added within the logarithms of the box bias.
const LOGIT_EPS: f64 = 1e-4;

/// Likeness of cells and queries, shifted and scaled by the cell.
#[derive(Debug)]
pub(super) struct ClassHead {
    project: Linear,
    shift: Linear,
    scale: Linear,
}

impl ClassHead {
    pub fn build(source: &mut dyn ParamSource, hidden: i64, queries: i64) -> Result<Self> {
        let mut linear = |part: &str, output: i64| {
            Linear::build(source, &format!("class_head.{part}"), hidden, output, true, Init::Xavier)
        };
        Ok(Self {
            project: linear("dense0", queries)?,
            shift: linear("logit_shift", 1)?,
            scale: linear("logit_scale", 1)?,
        })
    }

    /// Cells `[batch, cells, hidden]`, queries `[batch, queries, width]` and which queries are there
    /// (`[batch, queries]`, bool), to logits `[batch, cells, queries]` and class vectors `[batch, cells, width]`.
    pub fn forward(&self, cells: &Tensor, queries: &Tensor, present: &Tensor) -> Result<(Tensor, Tensor)> {
        let vectors = by_length(&self.project.forward(cells)?)?;
        let likeness = vectors.f_matmul(&by_length(queries)?.f_transpose(1, 2)?)?;
        let shift = self.shift.forward(cells)?;
        let scale = self.scale.forward(cells)?.f_elu()?.f_add_scalar(1.0)?;
        let logits = cast(&likeness.f_add(&shift)?.f_mul(&scale)?, Kind::Float)?;
        let absent = present.f_logical_not()?.f_unsqueeze(1)?;
        Ok((logits.f_masked_fill(&absent, PADDING_LOGIT)?, vectors))
    }
}

fn by_length(vectors: &Tensor) -> Result<Tensor> {
    let length = vectors.f_norm_scalaropt_dim(2.0, [-1i64].as_slice(), true)?.f_add_scalar(LENGTH_EPS)?;
    Ok(vectors.f_div(&length)?)
}

/// Three matrices with exact GELU between them.
#[derive(Debug)]
pub(super) struct MlpHead {
    layers: [Linear; 3],
}

impl MlpHead {
    pub fn build(source: &mut dyn ParamSource, name: &str, hidden: i64, output: i64) -> Result<Self> {
        let mut linear = |part: &str, output: i64| {
            Linear::build(source, &format!("{name}.{part}"), hidden, output, true, Init::Xavier)
        };
        Ok(Self { layers: [linear("dense0", hidden)?, linear("dense1", hidden)?, linear("dense2", output)?] })
    }

    /// `[.., hidden]` to `[.., output]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let [first, second, third] = &self.layers;
        let x = first.forward(x)?.f_gelu("none")?;
        third.forward(&second.forward(&x)?.f_gelu("none")?)
    }
}

/// The box that each cell starts from, as logits of centre x, centre y, width and height: `[side · side, 4]` float32,
/// cells row by row. The centre is at the cell's far corner and the size is one cell.
pub(super) fn box_bias(side: i64, device: Device) -> Result<Tensor> {
    let places =
        Tensor::f_arange(side, (Kind::Float, device))?.f_add_scalar(1.0)?.f_div_scalar(side as f64)?;
    let columns = places.f_view([1, side])?.f_expand([side, side], false)?;
    let rows = places.f_view([side, 1])?.f_expand([side, side], false)?;
    let size = Tensor::f_full([side, side], 1.0 / side as f64, (Kind::Float, device))?;
    let boxes = Tensor::f_stack(&[&columns, &rows, &size, &size], -1)?.f_view([side * side, 4])?;
    let above = boxes.f_add_scalar(LOGIT_EPS)?.f_log()?;
    let below = boxes.f_neg()?.f_add_scalar(LOGIT_EPS)?.f_log1p()?;
    Ok(above.f_sub(&below)?)
}
