// What the host hands over: one struct a pass, the same bytes for both builds (and for `fused/passes.rs`), and what one piece
// of the pass does. Strides and sizes in elements; `half` says that activations are bfloat16, not float32.
#pragma once

#include "fused.h"

// Rows are tokens, `width` wide; those of one sample share a row of the modulation.
struct NormModulate {
    const void *x, *shift, *scale;
    void* out;
    float *mean, *rstd;
    long width, rows_per_sample, modulation_stride;
    float eps;
    int half;
};

struct NormModulateBackward {
    const void *grad, *x, *scale, *residual;
    void* grad_x;
    const float *mean, *rstd;
    long width, rows_per_sample, modulation_stride;
    int half;
};

struct GatedResidual {
    const void *x, *gate, *update;
    void* out;
    long width, rows_per_sample, modulation_stride, update_stride;
    int half;
};

struct GateBackward {
    const void *grad, *gate;
    void* grad_update;
    long width, rows_per_sample, modulation_stride, update_stride;
    int half;
};

// Rows of (q | k | v) × head × channel, of one stream of tokens, to `[sample, head, token, channel]` of all streams, whose tokens
// of this one begin at `first_token`.
struct SplitHeads {
    const void* rows;
    void *query, *key, *value;
    const float *query_scale, *key_scale;
    // (cos, sin) by token of all streams and pair of channels; the samples' tables may be one.
    const float* rotations;
    long row_stride, tokens, first_token, all_tokens, heads, head_width, rotation_stride;
    float eps;
    int half;
};

struct SplitHeadsBackward {
    const void *grad_query, *grad_key, *grad_value, *rows;
    void* grad_rows;
    const float *query_scale, *key_scale, *rotations;
    long row_stride, grad_stride, tokens, first_token, all_tokens, heads, head_width, rotation_stride;
    float eps;
    int half;
};

// Between `[sample, head, token, channel]` and rows of head × channel, of one stream of tokens.
struct MoveHeads {
    void *heads_first, *rows;
    long row_stride, tokens, first_token, all_tokens, heads, head_width;
    int to_rows, half;
};

struct Gelu {
    const void* x;
    void* out;
    long x_stride, out_stride, width;
    int half;
};

struct GeluBackward {
    const void *grad, *x;
    void* grad_x;
    long grad_stride, x_stride, grad_x_stride, width;
    int half;
};

// Flat vectors of float32. These may be absent: `factor`, one number that multiplies the gradients; `average` of the values;
// `shadow`, the values in bfloat16.
struct AdamW {
    float* values;
    const float *grads, *factor;
    float *moments, *squares, *average;
    bf16* shadow;
    long count;
    AdamWNumbers numbers;
};

// Softmax of scale · scores over rows, in place; and scale · the gradient of its input, in place of that of its output. For
// processors: GPUs have attention kernels of their own.
struct Softmax {
    void* scores;
    long width;
    float scale;
    int half;
};

struct SoftmaxBackward {
    const void* probabilities;
    void* grad;
    long width;
    float scale;
    int half;
};

// Elements of one piece of AdamW.
#define ADAMW_PIECE 1024

#define OF(type, pointer) static_cast<type*>(pointer)
#define FROM(type, pointer) static_cast<const type*>(pointer)

template <class T>
FN void run_as(const NormModulate& a, long row) {
    const long sample = row / a.rows_per_sample * a.modulation_stride, at = row * a.width;
    norm_modulate<Block>(FROM(T, a.x) + at, FROM(T, a.shift) + sample, FROM(T, a.scale) + sample, OF(T, a.out) + at, a.mean + row,
                         a.rstd + row, a.width, a.eps);
}

template <class T>
FN void run_as(const NormModulateBackward& a, long row) {
    const long sample = row / a.rows_per_sample * a.modulation_stride, at = row * a.width;
    norm_modulate_backward<Block>(FROM(T, a.grad) + at, FROM(T, a.x) + at, FROM(T, a.scale) + sample, FROM(T, a.residual) + at,
                                  OF(T, a.grad_x) + at, a.mean[row], a.rstd[row], a.width);
}

template <class T>
FN void run_as(const GatedResidual& a, long row) {
    const long sample = row / a.rows_per_sample * a.modulation_stride, at = row * a.width;
    gated_residual<Block>(FROM(T, a.x) + at, FROM(T, a.gate) + sample, FROM(T, a.update) + row * a.update_stride,
                          OF(T, a.out) + at, a.width);
}

template <class T>
FN void run_as(const GateBackward& a, long row) {
    const long sample = row / a.rows_per_sample * a.modulation_stride, at = row * a.width;
    gate_backward<Block>(FROM(T, a.grad) + at, FROM(T, a.gate) + sample, OF(T, a.grad_update) + row * a.update_stride, a.width);
}

// A piece is a token of a sample.
template <class T>
FN void run_as(const SplitHeads& a, long piece) {
    const long sample = piece / a.tokens, token = a.first_token + piece % a.tokens, d = a.head_width;
    const float* rotations = a.rotations + sample * a.rotation_stride + token * d;
    for (long unit = Warp::group(); unit < 3 * a.heads; unit += Warp::groups()) {
        const long which = unit / a.heads, head = unit % a.heads;
        const T* from = FROM(T, a.rows) + piece * a.row_stride + unit * d;
        const long to = ((sample * a.heads + head) * a.all_tokens + token) * d;
        if (which == 0) {
            norm_rotate<Warp>(from, a.query_scale, rotations, OF(T, a.query) + to, d, a.eps);
        } else if (which == 1) {
            norm_rotate<Warp>(from, a.key_scale, rotations, OF(T, a.key) + to, d, a.eps);
        } else {
            copy_row<Warp>(from, OF(T, a.value) + to, d);
        }
    }
}

template <class T>
FN void run_as(const SplitHeadsBackward& a, long piece) {
    const long sample = piece / a.tokens, token = a.first_token + piece % a.tokens, d = a.head_width;
    const float* rotations = a.rotations + sample * a.rotation_stride + token * d;
    for (long unit = Warp::group(); unit < 3 * a.heads; unit += Warp::groups()) {
        const long which = unit / a.heads, head = unit % a.heads;
        const T* x = FROM(T, a.rows) + piece * a.row_stride + unit * d;
        T* to = OF(T, a.grad_rows) + piece * a.grad_stride + unit * d;
        const long from = ((sample * a.heads + head) * a.all_tokens + token) * d;
        if (which == 0) {
            norm_rotate_backward<Warp>(FROM(T, a.grad_query) + from, x, a.query_scale, rotations, to, d, a.eps);
        } else if (which == 1) {
            norm_rotate_backward<Warp>(FROM(T, a.grad_key) + from, x, a.key_scale, rotations, to, d, a.eps);
        } else {
            copy_row<Warp>(FROM(T, a.grad_value) + from, to, d);
        }
    }
}

template <class T>
FN void run_as(const MoveHeads& a, long piece) {
    const long sample = piece / a.tokens, token = a.first_token + piece % a.tokens, d = a.head_width;
    for (long head = Warp::group(); head < a.heads; head += Warp::groups()) {
        T* first = OF(T, a.heads_first) + ((sample * a.heads + head) * a.all_tokens + token) * d;
        T* row = OF(T, a.rows) + piece * a.row_stride + head * d;
        copy_row<Warp>(a.to_rows ? first : row, a.to_rows ? row : first, d);
    }
}

template <class T>
FN void run_as(const Gelu& a, long row) {
    gelu<Block>(FROM(T, a.x) + row * a.x_stride, OF(T, a.out) + row * a.out_stride, a.width);
}

template <class T>
FN void run_as(const GeluBackward& a, long row) {
    gelu_backward<Block>(FROM(T, a.grad) + row * a.grad_stride, FROM(T, a.x) + row * a.x_stride, OF(T, a.grad_x) + row * a.grad_x_stride,
                         a.width);
}

#ifndef __CUDACC__

template <class T>
FN void run_as(const Softmax& a, long row) {
    softmax<Block>(OF(T, a.scores) + row * a.width, a.width, a.scale);
}

template <class T>
FN void run_as(const SoftmaxBackward& a, long row) {
    softmax_backward<Block>(FROM(T, a.probabilities) + row * a.width, OF(T, a.grad) + row * a.width, a.width, a.scale);
}

#endif

template <class Pass>
FN void run(const Pass& a, long piece) {
    if (a.half) {
        run_as<bf16>(a, piece);
    } else {
        run_as<float>(a, piece);
    }
}

FN void run(const AdamW& a, long piece) {
    const long begin = piece * ADAMW_PIECE, end = begin + ADAMW_PIECE < a.count ? begin + ADAMW_PIECE : a.count;
    const float factor = a.factor ? *a.factor : 1.0f, rate = a.numbers.average_rate;
    // Each lane goes on with the elements that it has written.
    SIMD
    LANES(Block, i, begin, end) a.values[i] = adamw(a.values[i], a.grads[i] * factor, a.moments + i, a.squares + i, a.numbers);
    if (a.average) {
        SIMD
        LANES(Block, i, begin, end) a.average[i] += rate * (a.values[i] - a.average[i]);
    }
    if (a.shadow) {
        SIMD
        LANES(Block, i, begin, end) store(a.shadow + i, a.values[i]);
    }
}

// All passes, for either build to declare.
#define FOR_EACH_PASS(PASS) \
    PASS(crescendo_norm_modulate, NormModulate) \
    PASS(crescendo_norm_modulate_backward, NormModulateBackward) \
    PASS(crescendo_gated_residual, GatedResidual) \
    PASS(crescendo_gate_backward, GateBackward) \
    PASS(crescendo_split_heads, SplitHeads) \
    PASS(crescendo_split_heads_backward, SplitHeadsBackward) \
    PASS(crescendo_move_heads, MoveHeads) \
    PASS(crescendo_gelu, Gelu) \
    PASS(crescendo_gelu_backward, GeluBackward) \
    PASS(crescendo_adamw, AdamW)
