// The row kernels for the instruction set every processor of the architecture has.
#include <cmath>
#include <cstring>
#include <type_traits>

#include "rows_cpu.h"

#pragma GCC diagnostic ignored "-Wpsabi"  // vectors cross inlined functions only

namespace khub::cpu {

namespace {

#define KHUB_LANES 8
#include "lanes.h"
//
#include "two.h"
//
#include "activations_impl.h"
//
#include "rows_impl.h"

}  // namespace

static const RowKernels kernels = {run_rms_norm, run_activate, run_rotary, run_apply_rotary,
                                   run_qk_norm_rope_cache};
const RowKernels* const rows_baseline = &kernels;

}  // namespace khub::cpu
