// One piece a block; compiled at run time.
#include "passes.h"

#define PASS(name, type) \
    extern "C" __global__ void name(const type pass) { run(pass, blockIdx.x); }

FOR_EACH_PASS(PASS)
