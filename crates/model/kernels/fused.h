// Passes over activations that eager operations would make several of. Arithmetic is float32 whatever is stored; sizes in
// elements. `T` is float or bf16.
#pragma once

#include "portable.h"

// out = (1 + scale) · layer_norm(x) + shift; keeps what the backward pass needs of the norm.
template <class Row, class T>
FN void norm_modulate(const T* x, const T* shift, const T* scale, T* out, float* mean_out, float* rstd_out, long width, float eps) {
    float sum = 0;
    SIMD_SUM(sum)
    LANES(Row, i, 0, width) sum += load(x + i);
    const float mean = Row::sum(sum) / width;
    float squares = 0;
    SIMD_SUM(squares)
    LANES(Row, i, 0, width) {
        const float off = load(x + i) - mean;
        squares += off * off;
    }
    const float rstd = 1.0f / square_root(Row::sum(squares) / width + eps);
    SIMD
    LANES(Row, i, 0, width) {
        store(out + i, (load(x + i) - mean) * rstd * (1.0f + load(scale + i)) + load(shift + i));
    }
    if (Row::lane() == 0) {
        *mean_out = mean;
        *rstd_out = rstd;
    }
}

// grad_x = residual + the gradient through norm_modulate; `residual` is what reaches x beside it.
template <class Row, class T>
FN void norm_modulate_backward(const T* grad, const T* x, const T* scale, const T* residual, T* grad_x, float mean, float rstd, long width) {
    float sum = 0, dot = 0;
    SIMD_SUM(sum, dot)
    LANES(Row, i, 0, width) {
        const float g = load(grad + i) * (1.0f + load(scale + i));
        sum += g;
        dot += g * ((load(x + i) - mean) * rstd);
    }
    sum = Row::sum(sum) / width;
    dot = Row::sum(dot) / width;
    SIMD
    LANES(Row, i, 0, width) {
        const float g = load(grad + i) * (1.0f + load(scale + i));
        const float normal = (load(x + i) - mean) * rstd;
        store(grad_x + i, load(residual + i) + rstd * (g - sum - normal * dot));
    }
}

// out = x + gate · update
template <class Row, class T>
FN void gated_residual(const T* x, const T* gate, const T* update, T* out, long width) {
    SIMD
    LANES(Row, i, 0, width) {
        store(out + i, load(x + i) + load(gate + i) * load(update + i));
    }
}

// grad_update = gate · grad
template <class Row, class T>
FN void gate_backward(const T* grad, const T* gate, T* grad_update, long width) {
    SIMD
    LANES(Row, i, 0, width) store(grad_update + i, load(gate + i) * load(grad + i));
}

// One head of a query or a key: RMS norm with a learned scale, then the rotation of channels (2k, 2k + 1) by
// rotations[k] = (cos, sin).
template <class Row, class T>
FN void norm_rotate(const T* x, const float* scale, const float* rotations, T* out, long width, float eps) {
    float squares = 0;
    SIMD_SUM(squares)
    LANES(Row, i, 0, width) squares += load(x + i) * load(x + i);
    const float rms = 1.0f / square_root(Row::sum(squares) / width + eps);
    SIMD
    LANES(Row, k, 0, width / 2) {
        const float cos = rotations[2 * k], sin = rotations[2 * k + 1];
        const float a = load(x + 2 * k) * rms * scale[2 * k], b = load(x + 2 * k + 1) * rms * scale[2 * k + 1];
        store(out + 2 * k, a * cos - b * sin);
        store(out + 2 * k + 1, a * sin + b * cos);
    }
}

template <class Row, class T>
FN void norm_rotate_backward(const T* grad, const T* x, const float* scale, const float* rotations, T* grad_x, long width, float eps) {
    float squares = 0, dot = 0;
    SIMD_SUM(squares, dot)
    LANES(Row, k, 0, width / 2) {
        const float cos = rotations[2 * k], sin = rotations[2 * k + 1];
        const float g = load(grad + 2 * k), h = load(grad + 2 * k + 1);
        const float a = load(x + 2 * k), b = load(x + 2 * k + 1);
        squares += a * a + b * b;
        dot += (g * cos + h * sin) * scale[2 * k] * a + (h * cos - g * sin) * scale[2 * k + 1] * b;
    }
    const float rms = 1.0f / square_root(Row::sum(squares) / width + eps);
    const float along = Row::sum(dot) / width * rms * rms;
    SIMD
    LANES(Row, k, 0, width / 2) {
        const float cos = rotations[2 * k], sin = rotations[2 * k + 1];
        const float g = load(grad + 2 * k), h = load(grad + 2 * k + 1);
        const float a = load(x + 2 * k), b = load(x + 2 * k + 1);
        store(grad_x + 2 * k, rms * ((g * cos + h * sin) * scale[2 * k] - a * along));
        store(grad_x + 2 * k + 1, rms * ((h * cos - g * sin) * scale[2 * k + 1] - b * along));
    }
}

template <class Row, class T>
FN void copy_row(const T* x, T* out, long width) {
    SIMD
    LANES(Row, i, 0, width) out[i] = x[i];
}

// The sigmoid that the tanh form of GELU is made of: gelu(x) = x · gate(x).
FN float gelu_gate(float x) { return 1.0f / (1.0f + exponential(-1.5957691216f * (x + 0.044715f * x * x * x))); }

template <class Row, class T>
FN void gelu(const T* x, T* out, long width) {
    SIMD
    LANES(Row, i, 0, width) store(out + i, load(x + i) * gelu_gate(load(x + i)));
}

template <class Row, class T>
FN void gelu_backward(const T* grad, const T* x, T* grad_x, long width) {
    SIMD
    LANES(Row, i, 0, width) {
        const float at = load(x + i), gate = gelu_gate(at);
        const float slope = 1.5957691216f * (1.0f + 3.0f * 0.044715f * at * at);
        store(grad_x + i, load(grad + i) * (gate + at * gate * (1.0f - gate) * slope));
    }
}

#ifndef __CUDACC__

// Longest row of scores that fits the stack beside its powers.
#define TILE 2048

template <class Row, class T>
FN void softmax(T* scores, long width, float scale) {
    float most = load(scores);
    SIMD_MAX(most)
    LANES(Row, i, 0, width) most = load(scores + i) > most ? load(scores + i) : most;
    // Powers are rounded to `T` once, after they are divided by their sum.
    float sum = 0;
    if (width <= TILE) {
        float powers[TILE];
        SIMD_SUM(sum)
        LANES(Row, i, 0, width) {
            powers[i] = exponential((load(scores + i) - most) * scale);
            sum += powers[i];
        }
        const float factor = 1.0f / sum;
        SIMD
        LANES(Row, i, 0, width) store(scores + i, powers[i] * factor);
        return;
    }
    SIMD_SUM(sum)
    LANES(Row, i, 0, width) sum += exponential((load(scores + i) - most) * scale);
    const float factor = 1.0f / sum;
    SIMD
    LANES(Row, i, 0, width) store(scores + i, exponential((load(scores + i) - most) * scale) * factor);
}

template <class Row, class T>
FN void softmax_backward(const T* probabilities, T* grad, long width, float scale) {
    float dot = 0;
    SIMD_SUM(dot)
    LANES(Row, i, 0, width) dot += load(probabilities + i) * load(grad + i);
    SIMD
    LANES(Row, i, 0, width) store(grad + i, scale * load(probabilities + i) * (load(grad + i) - dot));
}

#endif

// One element of AdamW (arXiv 1711.05101).
struct AdamWNumbers {
    float decay;        // 1 − rate · weight decay
    float beta1, beta2;
    float rate;         // rate / (1 − beta1^steps)
    float correction2;  // √(1 − beta2^steps)
    float eps;
    float average_rate;  // 1 − decay of the average
};

FN float adamw(float value, float grad, float* moment, float* square, const AdamWNumbers& n) {
    const float m = *moment * n.beta1 + grad * (1.0f - n.beta1);
    const float s = *square * n.beta2 + grad * grad * (1.0f - n.beta2);
    *moment = m;
    *square = s;
    return value * n.decay - n.rate * m / (square_root(s) / n.correction2 + n.eps);
}
