// One piece a block; compiled at run time.
#include "passes.h"

#define PASS(name, type) \
    extern "C" __global__ void name(const type pass) { run(pass, blockIdx.x); }

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
