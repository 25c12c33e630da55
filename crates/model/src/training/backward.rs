//! Gradients of one cut-out piece of the network.

use tch::{Kind, Tensor};

use crate::error::Result;

/// A copy of `tensor` cut from its graph; with `track`, a leaf that gradients are taken for.
pub(super) fn leaf(tensor: &Tensor, track: bool) -> Result<Tensor> {
    Ok(tensor.f_detach()?.f_set_requires_grad(track)?)
}

/// Gradients of Σ out · grad_out over all pairs with respect to `wrt`; frees the graph. A gradient that
/// nothing contributes to comes back undefined.
///
/// The sum stands in for handing `grad_out` to autograd, which the bindings cannot do: its own gradient
/// is exactly `grad_out`, whatever the sum's value rounds to.
pub(super) fn gradients(outputs: &[(&Tensor, &Tensor)], wrt: &[&Tensor]) -> Result<Vec<Tensor>> {
    if wrt.is_empty() {
        return Ok(Vec::new());
    }
    let roots = outputs
        .iter()
        .map(|(output, grad)| Ok(output.f_mul(grad)?.f_sum(Kind::Float)?))
        .collect::<Result<Vec<_>>>()?;
    Ok(Tensor::f_run_backward(&roots, wrt, false, false)?)
}
