// Compiled once for each set of instructions, with VARIANT at the end of its names.
#include "passes.h"

#define JOIN(a, b) a##b
#define NAMED(name, variant) JOIN(name, variant)
#define PASS(name, type) \
    extern "C" void NAMED(name, VARIANT)(const type* pass, long begin, long end) { \
        for (long piece = begin; piece < end; ++piece) run(*pass, piece); \
    }

PASS(crescendo_norm_modulate, NormModulate)
PASS(crescendo_norm_modulate_backward, NormModulateBackward)
PASS(crescendo_gated_residual, GatedResidual)
PASS(crescendo_gate_backward, GateBackward)
PASS(crescendo_split_heads, SplitHeads)
PASS(crescendo_split_heads_backward, SplitHeadsBackward)
PASS(crescendo_move_heads, MoveHeads)
PASS(crescendo_gelu, Gelu)
PASS(crescendo_gelu_backward, GeluBackward)
PASS(crescendo_adamw, AdamW)
PASS(crescendo_softmax, Softmax)
PASS(crescendo_softmax_backward, SoftmaxBackward)
