//! Names, shapes and dtypes of tensors, as the header of a weight file has them.

use std::collections::BTreeMap;

/// One tensor as a header describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorHeader {
    pub shape: Vec<i64>,
    /// As safetensors spells it: `BF16`, `F32`, ….
    pub dtype: String,
    /// Bits of one element.
    pub bits: usize,
}

/// Tensors by name.
pub type Header = BTreeMap<String, TensorHeader>;

/// The dtypes that weights are read from, as an error spells them.
pub(crate) const FLOAT_DTYPES: &str = "F32, BF16, F16, F64, F8_E4M3 or F8_E5M2";

/// Whether a dtype is one of [`FLOAT_DTYPES`].
pub(crate) fn is_float(dtype: &str) -> bool {
    matches!(dtype, "F32" | "BF16" | "F16" | "F64" | "F8_E4M3" | "F8_E5M2")
}

/// Whether a dtype has one byte an element, so that weights may lie in it divided by a scale.
pub(crate) fn is_float8(dtype: &str) -> bool {
    matches!(dtype, "F8_E4M3" | "F8_E5M2")
}
