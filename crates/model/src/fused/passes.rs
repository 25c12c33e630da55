//! The structs of `kernels/passes.h`, byte for byte.

use std::ffi::{c_int, c_void};

#[repr(C)]
pub struct NormModulate {
    pub x: *const c_void,
    pub shift: *const c_void,
    pub scale: *const c_void,
    pub out: *mut c_void,
    pub mean: *mut f32,
    pub rstd: *mut f32,
    pub width: i64,
    pub rows_per_sample: i64,
    pub modulation_stride: i64,
    pub eps: f32,
    pub half: c_int,
}

#[repr(C)]
pub struct NormModulateBackward {
    pub grad: *const c_void,
    pub x: *const c_void,
    pub scale: *const c_void,
    pub residual: *const c_void,
    pub grad_x: *mut c_void,
    pub mean: *const f32,
    pub rstd: *const f32,
    pub width: i64,
    pub rows_per_sample: i64,
    pub modulation_stride: i64,
    pub half: c_int,
}

#[repr(C)]
pub struct GatedResidual {
    pub x: *const c_void,
    pub gate: *const c_void,
    pub update: *const c_void,
    pub out: *mut c_void,
    pub width: i64,
    pub rows_per_sample: i64,
    pub modulation_stride: i64,
    pub update_stride: i64,
    pub half: c_int,
}

#[repr(C)]
pub struct GateBackward {
    pub grad: *const c_void,
    pub gate: *const c_void,
    pub grad_update: *mut c_void,
    pub width: i64,
    pub rows_per_sample: i64,
    pub modulation_stride: i64,
    pub update_stride: i64,
    pub half: c_int,
}

#[repr(C)]
pub struct SplitHeads {
    pub rows: *const c_void,
    pub query: *mut c_void,
    pub key: *mut c_void,
    pub value: *mut c_void,
    pub query_scale: *const f32,
    pub key_scale: *const f32,
    pub rotations: *const f32,
    pub row_stride: i64,
    pub tokens: i64,
    pub first_token: i64,
    pub all_tokens: i64,
    pub heads: i64,
    pub head_width: i64,
    pub rotation_stride: i64,
    pub eps: f32,
    pub half: c_int,
}

#[repr(C)]
pub struct SplitHeadsBackward {
    pub grad_query: *const c_void,
    pub grad_key: *const c_void,
    pub grad_value: *const c_void,
    pub rows: *const c_void,
    pub grad_rows: *mut c_void,
    pub query_scale: *const f32,
    pub key_scale: *const f32,
    pub rotations: *const f32,
    pub row_stride: i64,
    pub grad_stride: i64,
    pub tokens: i64,
    pub first_token: i64,
    pub all_tokens: i64,
    pub heads: i64,
    pub head_width: i64,
    pub rotation_stride: i64,
    pub eps: f32,
    pub half: c_int,
}

#[repr(C)]
pub struct MoveHeads {
    pub heads_first: *mut c_void,
    pub rows: *mut c_void,
    pub row_stride: i64,
    pub tokens: i64,
    pub first_token: i64,
    pub all_tokens: i64,
    pub heads: i64,
    pub head_width: i64,
    pub to_rows: c_int,
    pub half: c_int,
}

#[repr(C)]
pub struct Gelu {
    pub x: *const c_void,
    pub out: *mut c_void,
    pub x_stride: i64,
    pub out_stride: i64,
    pub width: i64,
    pub half: c_int,
}

#[repr(C)]
pub struct GeluBackward {
    pub grad: *const c_void,
    pub x: *const c_void,
    pub grad_x: *mut c_void,
    pub grad_stride: i64,
    pub x_stride: i64,
    pub grad_x_stride: i64,
    pub width: i64,
    pub half: c_int,
}

/// What an optimizer step does to every element.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct AdamWNumbers {
    /// 1 − rate · weight decay
    pub decay: f32,
    pub beta1: f32,
    pub beta2: f32,
    /// rate / (1 − beta1^steps)
    pub rate: f32,
    /// √(1 − beta2^steps)
    pub correction2: f32,
    pub eps: f32,
    /// 1 − decay of the average, if there is one
    pub average_rate: f32,
}

#[repr(C)]
pub struct AdamW {
    pub values: *mut f32,
    pub grads: *const f32,
    pub factor: *const f32,
    pub moments: *mut f32,
    pub squares: *mut f32,
    pub average: *mut f32,
    pub shadow: *mut c_void,
    pub count: i64,
    pub numbers: AdamWNumbers,
}

/// Softmax over rows, in place; on processors only: GPUs have attention kernels of their own.
#[repr(C)]
pub struct Softmax {
    pub scores: *mut c_void,
    pub width: i64,
    pub scale: f32,
    pub half: c_int,
}

#[repr(C)]
pub struct SoftmaxBackward {
    pub probabilities: *const c_void,
    pub grad: *mut c_void,
    pub width: i64,
    pub scale: f32,
    pub half: c_int,
}

/// Elements of one piece of [`AdamW`].
pub const ADAMW_PIECE: i64 = 1024;
