//! Every build of the kernels held to the eager operations.

use super::*;
use crate::FluxConfig;
use crate::randomness::NormalStream;
use crate::unope::{Grid, Layout, Offsets};

const EPS: f64 = 1e-6;

fn draw(name: &str, shape: &[i64], kind: Kind) -> Tensor {
    NormalStream::for_weight(1, name).tensor(shape).expect("drawn").to_kind(kind)
}

/// Relative to the largest value: float32 loses some bits in sums, bfloat16 has 8.
fn assert_near(what: &str, found: &Tensor, expected: &Tensor) {
    assert_eq!((found.size(), found.kind()), (expected.size(), expected.kind()), "{what}");
    let limit = if found.kind() == Kind::BFloat16 { 2e-2 } else { 2e-6 };
    let (found, expected) = (found.to_kind(Kind::Double), expected.to_kind(Kind::Double));
    let scale = expected.abs().max().double_value(&[]);
    let error = (found - expected).abs().max().double_value(&[]);
    assert!(scale > 0.0 && error <= limit * scale, "{what}: {error:e} of {scale:e}");
}

/// Calls `check` with every build that this processor runs, at both dtypes.
fn with_all(check: impl Fn(Fused, Kind)) {
    for variant in Variant::of_processor() {
        for kind in [Kind::Float, Kind::BFloat16] {
            check(Fused::Cpu(variant), kind);
        }
    }
}

/// Widths that fill no vector, and that fill some and a rest.
const WIDTHS: [i64; 3] = [7, 24, 76];

#[test]
fn modulation_and_residual() {
    with_all(|fused, kind| {
        for width in WIDTHS {
            let x = draw("x", &[3, 5, width], kind) * 2.0 + 0.5;
            let all = draw("modulation", &[3, 6 * width], kind);
            let modulation = ModulationColumns::new(&all, 1, width);
            let (grad, residual) =
                (draw("grad", &[3, 5, width], kind), draw("residual", &[3, 5, width], kind));
            let (out, stats) = fused.norm_modulate(&x, &modulation, EPS).expect("fits");
            let (expected, known) = Fused::Eager.norm_modulate(&x, &modulation, EPS).expect("fits");
            assert_near("norm", &out, &expected);
            // Libtorch rounds a bfloat16's mean to its own dtype.
            if kind == Kind::Float {
                assert_near("mean", &stats.mean, &known.mean);
            }
            let back = |fused: Fused| {
                fused.norm_modulate_backward(&grad, &x, &modulation, &known, &residual).expect("fits")
            };
            assert_near("norm, backward", &back(fused), &back(Fused::Eager));
            let update = grad.view([-1, width]);
            let add = |fused: Fused| fused.gated_residual(&x, &modulation, &update).expect("fits");
            assert_near("residual", &add(fused), &add(Fused::Eager));
            let gate = |fused: Fused| {
                // Columns of something wider.
                let out =
                    Tensor::zeros([update.size()[0], width + 3], (kind, Device::Cpu)).narrow(1, 3, width);
                fused.gate_backward(&grad, &modulation, &out).expect("fits");
                out
            };
            assert_near("gate", &gate(fused), &gate(Fused::Eager));
        }
    });
}

#[test]
fn heads_of_two_streams() {
    let config = FluxConfig { hidden_size: 36, num_heads: 3, axes_dim: vec![4, 4, 4], ..FluxConfig::nano() };
    let layout = Layout {
        text_tokens: 4,
        target: Grid { rows: 2, columns: 3 },
        references: Vec::new(),
        offsets: Offsets::PUBLISHED,
    };
    let rope = RopeTable::from_layout(&layout, &config, Device::Cpu).expect("a table");
    let (query_scale, key_scale) = (draw("q", &[12], Kind::Float), draw("k", &[12], Kind::Float));
    let norm = HeadNorm { query_scale: &query_scale, key_scale: &key_scale, rope: &rope, eps: EPS };
    with_all(|fused, kind| {
        let empty = || Tensor::zeros([2, 3, 10, 12], (kind, Device::Cpu));
        let fresh = || Heads { query: empty(), key: empty(), value: empty() };
        let (ours, known) = (fresh(), fresh());
        let grads = Heads {
            query: draw("gq", &[2, 3, 10, 12], kind),
            key: draw("gk", &[2, 3, 10, 12], kind),
            value: draw("gv", &[2, 3, 10, 12], kind),
        };
        for (first_token, tokens) in [(0, 4), (4, 6)] {
            let place =
                StreamPlace { batch: 2, tokens, first_token, all_tokens: 10, heads: 3, head_width: 12 };
            // Wider rows, as where an MLP's columns follow.
            let rows = draw("rows", &[2 * tokens, 3 * 36 + 5], kind);
            fused.split_heads(&rows, &place, &norm, &ours).expect("fits");
            Fused::Eager.split_heads(&rows, &place, &norm, &known).expect("fits");
            let back = |fused: Fused| {
                let out = Tensor::zeros([2 * tokens, 3 * 36 + 2], (kind, Device::Cpu));
                fused.split_heads_backward(&grads, &rows, &place, &norm, &out).expect("fits");
                out
            };
            assert_near("split, backward", &back(fused), &back(Fused::Eager));
            let moved = |fused: Fused| {
                let out = Tensor::zeros([2 * tokens, 36 + 2], (kind, Device::Cpu));
                fused.heads_to_rows(&grads.value, &place, &out).expect("fits");
                let heads = empty();
                fused.rows_to_heads(&out, &place, &heads).expect("fits");
                (out, heads)
            };
            assert_eq!(moved(fused), moved(Fused::Eager));
        }
        assert_near("query", &ours.query, &known.query);
        assert_near("key", &ours.key, &known.key);
        assert_eq!(ours.value, known.value);
    });
}

#[test]
fn activations_and_attention() {
    with_all(|fused, kind| {
        for width in WIDTHS {
            // From far below to far above where the function bends.
            let x = draw("x", &[7, width + 3], kind) * 6.0;
            let grad = draw("grad", &[7, width], kind);
            let x = x.narrow(1, 3, width);
            let gelu = |fused: Fused| {
                let (out, back) = (grad.zeros_like(), grad.zeros_like());
                fused.gelu(&x, &out).expect("fits");
                fused.gelu_backward(&grad, &x, &back).expect("fits");
                (out, back)
            };
            let ((out, back), (expected, known)) = (gelu(fused), gelu(Fused::Eager));
            assert_near("gelu", &out, &expected);
            assert_near("gelu, backward", &back, &known);

            let scores = draw("scores", &[2, 5, width], kind) * 30.0;
            let softmax = |fused: Fused| {
                let (out, back) = (scores.copy(), draw("gradient", &[2, 5, width], kind));
                fused.softmax(&out, 0.5).expect("fits");
                let probabilities = scores.copy();
                Fused::Eager.softmax(&probabilities, 0.5).expect("fits");
                fused.softmax_backward(&probabilities, &back, 0.5).expect("fits");
                (out, back)
            };
            let ((out, back), (expected, known)) = (softmax(fused), softmax(Fused::Eager));
            assert_near("softmax", &out, &expected);
            assert_near("softmax, backward", &back, &known);
        }
    });
}

#[test]
fn an_optimizer_step_is_adamw() {
    let numbers = AdamWNumbers {
        decay: 0.99,
        beta1: 0.9,
        beta2: 0.999,
        rate: 0.01,
        correction2: 0.2,
        eps: 1e-8,
        average_rate: 0.1,
    };
    for variant in Variant::of_processor() {
        // A piece and a rest.
        let count = passes::ADAMW_PIECE + 7;
        let flat = |name: &str| draw(name, &[count], Kind::Float);
        let (values, grads, moments) = (flat("values"), flat("grads"), flat("moments"));
        let squares = flat("squares").square();
        let (factor, average) = (Tensor::from(0.5f32), flat("average"));
        let clipped = &grads * 0.5;
        let m = &moments * 0.9 + &clipped * 0.1;
        let s = &squares * 0.999 + clipped.square() * 0.001;
        let expected = &values * 0.99 - (&m * 0.01) / (s.sqrt() / 0.2 + 1e-8);
        let shadow = values.to_kind(Kind::BFloat16);
        let expected_average = &average * 0.9 + &expected * 0.1;
        let vectors = AdamWVectors {
            values: &values,
            grads: &grads,
            factor: Some(&factor),
            moments: &moments,
            squares: &squares,
            average: Some(&average),
            shadow: Some(&shadow),
        };
        assert!(Fused::Cpu(variant).adamw(&vectors, numbers).expect("fits"));
        assert_near("values", &values, &expected);
        assert_near("moments", &moments, &m);
        assert_near("squares", &squares, &s);
        assert_near("average", &average, &expected_average);
        assert_eq!(grads, flat("grads"), "are only read");
        assert_eq!(shadow, values.to_kind(Kind::BFloat16), "rounded as libtorch rounds");
        let alone = AdamWVectors { factor: None, average: None, shadow: None, ..vectors };
        assert!(Fused::Cpu(variant).adamw(&alone, numbers).expect("fits"));
        assert!(!Fused::Eager.adamw(&alone, numbers).expect("fits"));
        let two = AdamWVectors { factor: Some(&grads), ..vectors };
        assert!(Fused::Cpu(variant).adamw(&two, numbers).is_err(), "one factor for all");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let fused = Fused::Cpu(Variant::Plain);
    let x = draw("x", &[2, 3, 8], Kind::Float);
    let modulation = ModulationColumns::new(&draw("modulation", &[2, 24], Kind::Float), 0, 8);
    let other =
        |batch, hidden| ModulationColumns::new(&draw("modulation", &[batch, 24], Kind::Float), 0, hidden);
    assert!(fused.norm_modulate(&x, &modulation, EPS).is_ok());
    assert!(fused.norm_modulate(&x, &other(1, 8), EPS).is_err());
    assert!(fused.norm_modulate(&x, &other(2, 4), EPS).is_err());
    assert!(fused.norm_modulate(&x.transpose(0, 1), &modulation, EPS).is_err());
    assert!(fused.gated_residual(&x, &modulation, &x.to_kind(Kind::BFloat16)).is_err());
    assert!(fused.gelu(&x.get(0), &x.get(0).narrow(1, 0, 4)).is_err());
    assert!(fused.softmax(&x.transpose(0, 2), 1.0).is_err());
}

#[test]
fn numbers_that_are_none_stay_none() {
    with_all(|fused, kind| {
        let x = Tensor::from_slice(&[f32::NAN, 1.0, f32::INFINITY, 3.0]).to_kind(kind).view([1, 4]);
        let out = x.zeros_like();
        fused.gelu(&x, &out).expect("fits");
        let out = Vec::<f64>::try_from(out.view([-1]).to_kind(Kind::Double)).expect("numbers");
        assert!(out[0].is_nan() && out[2].is_infinite() && out[1].is_finite(), "{out:?}");
        fused.softmax(&x, 1.0).expect("fits");
        assert!(x.isnan().any().int64_value(&[]) == 1);
    });
}
