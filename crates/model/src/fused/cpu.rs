//! The passes on the CPU: compiled for several sets of instructions, of which the processor's best is taken.

#![allow(unsafe_code, reason = "calls the kernels, which are C++")]

use std::sync::OnceLock;

use super::passes::{
    AdamW, GateBackward, GatedResidual, Gelu, GeluBackward, MoveHeads, NormModulate, NormModulateBackward,
    Softmax, SoftmaxBackward, SplitHeads, SplitHeadsBackward,
};

/// Work below this many pieces is not worth a second thread.
const PIECES_PER_THREAD: i64 = 64;

/// A set of instructions that the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Variant {
    Plain,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Variant {
    /// The best that the processor has, and that libtorch is not kept from (`ATEN_CPU_CAPABILITY`), so that one variable
    /// plays another processor everywhere.
    pub fn chosen() -> Self {
        static CHOSEN: OnceLock<Variant> = OnceLock::new();
        *CHOSEN.get_or_init(|| {
            let allowed = std::env::var("ATEN_CPU_CAPABILITY").unwrap_or_default();
            Self::of_processor()
                .into_iter()
                .filter(|variant| variant.is_allowed(&allowed))
                .max()
                .unwrap_or(Self::Plain)
        })
    }

    /// All that this processor can run.
    pub fn of_processor() -> Vec<Self> {
        let mut found = vec![Self::Plain];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                found.push(Self::Avx2);
            }
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq")
            {
                found.push(Self::Avx512);
            }
        }
        found
    }

    fn is_allowed(self, capability: &str) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            match capability {
                "default" => self == Self::Plain,
                "avx2" => self <= Self::Avx2,
                _ => true,
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = capability;
            self == Self::Plain
        }
    }
}

/// A pass that the kernels have.
///
/// # Safety
/// `run_range` may be called with any part of the pieces that the struct is filled for, and from several threads with parts
/// that do not overlap.
pub unsafe trait Pass: Sized {
    /// Does the pieces `begin..end`.
    ///
    /// # Safety
    /// The pointers lead to as much memory as the pieces need, of the dtypes that the struct says.
    unsafe fn run_range(&self, variant: Variant, begin: i64, end: i64);
}

macro_rules! passes {
    ($($pass:ident: $plain:ident $avx2:ident $avx512:ident;)*) => {
        unsafe extern "C" {
            $(
                fn $plain(pass: *const $pass, begin: i64, end: i64);
                #[cfg(target_arch = "x86_64")]
                fn $avx2(pass: *const $pass, begin: i64, end: i64);
                #[cfg(target_arch = "x86_64")]
                fn $avx512(pass: *const $pass, begin: i64, end: i64);
            )*
        }
        $(
            // SAFETY: pieces write to places of their own and read nothing that another piece writes.
            unsafe impl Pass for $pass {
                unsafe fn run_range(&self, variant: Variant, begin: i64, end: i64) {
                    // SAFETY: the struct is the one that the function is declared for; the rest is the caller's word.
                    unsafe {
                        match variant {
                            Variant::Plain => $plain(self, begin, end),
                            #[cfg(target_arch = "x86_64")]
                            Variant::Avx2 => $avx2(self, begin, end),
                            #[cfg(target_arch = "x86_64")]
                            Variant::Avx512 => $avx512(self, begin, end),
                        }
                    }
                }
            }
        )*
    };
}

passes! {
    NormModulate: crescendo_norm_modulate_plain crescendo_norm_modulate_avx2 crescendo_norm_modulate_avx512;
    NormModulateBackward: crescendo_norm_modulate_backward_plain crescendo_norm_modulate_backward_avx2 crescendo_norm_modulate_backward_avx512;
    GatedResidual: crescendo_gated_residual_plain crescendo_gated_residual_avx2 crescendo_gated_residual_avx512;
    GateBackward: crescendo_gate_backward_plain crescendo_gate_backward_avx2 crescendo_gate_backward_avx512;
    SplitHeads: crescendo_split_heads_plain crescendo_split_heads_avx2 crescendo_split_heads_avx512;
    SplitHeadsBackward: crescendo_split_heads_backward_plain crescendo_split_heads_backward_avx2 crescendo_split_heads_backward_avx512;
    MoveHeads: crescendo_move_heads_plain crescendo_move_heads_avx2 crescendo_move_heads_avx512;
    Gelu: crescendo_gelu_plain crescendo_gelu_avx2 crescendo_gelu_avx512;
    GeluBackward: crescendo_gelu_backward_plain crescendo_gelu_backward_avx2 crescendo_gelu_backward_avx512;
    AdamW: crescendo_adamw_plain crescendo_adamw_avx2 crescendo_adamw_avx512;
    Softmax: crescendo_softmax_plain crescendo_softmax_avx2 crescendo_softmax_avx512;
    SoftmaxBackward: crescendo_softmax_backward_plain crescendo_softmax_backward_avx2 crescendo_softmax_backward_avx512;
}

/// Lets threads share a struct of pointers.
struct Shared<'a, P>(&'a P);

// SAFETY: `Pass` promises that parts may be done from several threads.
unsafe impl<P: Pass> Sync for Shared<'_, P> {}
// SAFETY: as above.
unsafe impl<P: Pass> Send for Shared<'_, P> {}

impl<P: Pass> Shared<'_, P> {
    /// # Safety
    /// As [`Pass::run_range`].
    unsafe fn run_range(&self, variant: Variant, begin: i64, end: i64) {
        // SAFETY: the caller's word.
        unsafe { self.0.run_range(variant, begin, end) }
    }
}

/// Does all of `pieces`, by as many threads as libtorch computes with here.
///
/// # Safety
/// As [`Pass::run_range`], for all pieces.
pub unsafe fn run<P: Pass>(variant: Variant, pass: &P, pieces: i64) {
    let threads = i64::from(tch::get_num_threads()).min(pieces / PIECES_PER_THREAD).max(1);
    if threads == 1 {
        // SAFETY: the caller's word.
        unsafe { pass.run_range(variant, 0, pieces) };
        return;
    }
    let shared = &Shared(pass);
    rayon::scope(|scope| {
        for part in 0..threads {
            let (begin, end) = (pieces * part / threads, pieces * (part + 1) / threads);
            // SAFETY: the parts do not overlap, and the rest is the caller's word.
            scope.spawn(move |_| unsafe { shared.run_range(variant, begin, end) });
        }
    });
}
