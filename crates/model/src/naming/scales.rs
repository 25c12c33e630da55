//! One-byte weights that are stored divided by a scale.
//!
//! Two spellings: `X.scale_weight` beside `X.weight`, with a marker `scaled_fp8` (ComfyUI's first), and `X.weight_scale` with
//! a `X.comfy_quant` that holds JSON (ComfyUI's second; without it, that of compressed-tensors and ModelOpt). Scales of
//! inputs, for arithmetic in one byte, are of no use here.

use super::{Tensors, note};
use crate::error::{ProblemKind, TensorProblem};
use crate::header::{Header, is_float8};

const SCALES: [&str; 2] = [".scale_weight", ".weight_scale"];
/// Names, or ends of names, of what goes with the scales.
const MARKER: &str = "scaled_fp8";
const OF_NO_USE: [&str; 3] = [".scale_input", ".input_scale", ".comfy_quant"];

/// Gives each weight its scale, and takes scales and markers out of the tensors. Returns whether there were any. A one-byte
/// weight that has none in a file that has them elsewhere is a problem: it would be off by a factor.
pub(super) fn take_off(header: &Header, tensors: &mut Tensors, problems: &mut Vec<TensorProblem>) -> bool {
    let marked = tensors.remove(MARKER).is_some();
    let mut found = marked;
    let names: Vec<String> = tensors.keys().cloned().collect();
    for name in &names {
        let Some(module) = SCALES.iter().find_map(|end| name.strip_suffix(end)) else { continue };
        let Some(scale) = tensors.remove(name) else { continue };
        found = true;
        match tensors.get_mut(&format!("{module}.weight")) {
            Some(weight) => {
                check(header, &weight.tensor, &scale.tensor, problems);
                weight.scale = Some(scale.tensor);
            }
            None => note(problems, scale.tensor, ProblemKind::Unexpected),
        }
    }
    if !found {
        return false;
    }
    tensors.retain(|name, _| !OF_NO_USE.iter().any(|end| name.ends_with(end)));
    for (name, piece) in tensors.iter() {
        let one_byte = header.get(&piece.tensor).is_some_and(|tensor| is_float8(&tensor.dtype));
        if let Some(module) = name.strip_suffix(".weight").filter(|_| one_byte && piece.scale.is_none()) {
            let spelled = if marked { SCALES[0] } else { SCALES[1] };
            let prefix = piece.tensor.strip_suffix(name.as_str()).unwrap_or_default();
            note(problems, format!("{prefix}{module}{spelled}"), ProblemKind::Missing);
        }
    }
    true
}

/// A scale is one number, or one for each row; weights in blocks of other sorts (NVFP4, MXFP8) are not read.
fn check(header: &Header, weight: &str, scale: &str, problems: &mut Vec<TensorProblem>) {
    let (Some(weight_header), Some(scale_header)) = (header.get(weight), header.get(scale)) else { return };
    if !is_float8(&weight_header.dtype) {
        let found = format!("{}, with a scale", weight_header.dtype);
        note(problems, weight, ProblemKind::Dtype { found, expected: "F8_E4M3 or F8_E5M2".to_owned() });
        return;
    }
    let rows = weight_header.shape.first().copied().unwrap_or(1);
    let one = scale_header.shape.iter().all(|side| *side == 1);
    let by_row = matches!(scale_header.shape.as_slice(), [n] | [n, 1] if *n == rows);
    if !one && !by_row {
        let found = scale_header.shape.clone();
        note(problems, scale, ProblemKind::Shape { found, expected: vec![rows, 1] });
    }
    if scale_header.dtype != "F32" && scale_header.dtype != "BF16" && scale_header.dtype != "F16" {
        let found = scale_header.dtype.clone();
        note(problems, scale, ProblemKind::Dtype { found, expected: "F32, BF16 or F16".to_owned() });
    }
}
