// Compiled once for each set of instructions, with VARIANT at the end of its names.
#include "passes.h"

#define JOIN(a, b) a##b
#define NAMED(name, variant) JOIN(name, variant)
#define PASS(name, type) \
    extern "C" void NAMED(name, VARIANT)(const type* pass, long begin, long end) { \
        for (long piece = begin; piece < end; ++piece) run(*pass, piece); \
    }

FOR_EACH_PASS(PASS)
PASS(crescendo_softmax, Softmax)
PASS(crescendo_softmax_backward, SoftmaxBackward)
