// What the kernels are written in: the same source is CUDA, compiled at run time, where the threads of a group share a row,
// and plain C++, where one thread has a row to itself.
//
//              lanes of a row       sum over a row
//   CUDA       a block or a warp    shuffles, and shared memory between warps
//   C++        one                  the sum itself; loops over a row are vectorised
#pragma once

// Rounded to the nearest by hand, so that no header of CUDA is needed and all devices round alike.
struct bf16 {
    unsigned short bits;
};

#ifdef __CUDACC__

#define FN static __device__ __forceinline__
// A lane's part of [from, to).
#define LANES(Row, i, from, to) for (long i = (from) + Row::lane(); i < (to); i += Row::lanes())
#define SIMD
#define SIMD_SUM(...)


FN float bits_to_float(unsigned bits) { return __uint_as_float(bits); }
FN unsigned float_to_bits(float value) { return __float_as_uint(value); }
FN float square_root(float value) { return sqrtf(value); }
FN float exponential(float value) { return __expf(value); }

// The whole block has one row.
struct Block {
    FN int lane() { return threadIdx.x; }
    FN int lanes() { return blockDim.x; }
    FN float sum(float value) {
        __shared__ float parts[32];
        for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
        // A sum before this one may still be read.
        __syncthreads();
        if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
        __syncthreads();
        float total = 0;
        for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) total += parts[warp];
        return total;
    }
};

// A warp has one row.
struct Warp {
    FN int lane() { return threadIdx.x % 32; }
    FN int lanes() { return 32; }
    // Which warp of the block it is, and of how many.
    FN int group() { return threadIdx.x / 32; }
    FN int groups() { return blockDim.x / 32; }
    FN float sum(float value) {
        for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
        return value;
    }
};

#else

#include <cmath>
#include <cstring>

#define FN static inline __attribute__((always_inline))
#define AS_PRAGMA(text) _Pragma(#text)
#define LANES(Row, i, from, to) for (long i = (from); i < (to); ++i)
#define SIMD AS_PRAGMA(omp simd)
#define SIMD_MAX(most) AS_PRAGMA(omp simd reduction(max : most))
#define SIMD_SUM(...) AS_PRAGMA(omp simd reduction(+ : __VA_ARGS__))

FN float bits_to_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
FN unsigned float_to_bits(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
FN float square_root(float value) { return std::sqrt(value); }

// Within 2 units of the last place over the range of float: 2^n · e^r with |r| <= ln 2 / 2. The compiler makes vectors of
// it, which it cannot of the library's function.
FN float exponential(float value) {
    value = value < -87.0f ? -87.0f : value;
    value = value > 88.0f ? 88.0f : value;
    // Adding and taking away 1.5 · 2^23 rounds to a whole number.
    const float magic = 12582912.0f;
    const float n = (value * 1.44269504f + magic) - magic;
    float r = value - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * bits_to_float(static_cast<unsigned>(static_cast<int>(n) + 127) << 23);
}

struct Alone {
    FN int lane() { return 0; }
    FN int group() { return 0; }
    FN int groups() { return 1; }
    FN float sum(float value) { return value; }
};
typedef Alone Block;
typedef Alone Warp;

#endif

FN float load(const float* from) { return *from; }
FN void store(float* to, float value) { *to = value; }

FN float load(const bf16* from) { return bits_to_float(static_cast<unsigned>(from->bits) << 16); }
FN void store(bf16* to, float value) {
    const unsigned bits = float_to_bits(value);
    const unsigned rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    // A number that is none stays none: rounding up could carry it to infinity or past the sign.
    to->bits = static_cast<unsigned short>((bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16) | 0x40u : rounded);
}
