// The row kernels for AVX2 with FMA and F16C.
#include <cmath>
#include <cstring>
#include <type_traits>

#include "rows_cpu.h"

#if defined(__x86_64__) && !defined(KHUB_BASELINE)  // which tests set to be given the other paths
#include <immintrin.h>

#pragma GCC target("avx2,fma,f16c")
#define KHUB_F16C
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
const RowKernels* const rows_avx2 = &kernels;

}  // namespace khub::cpu

#else

namespace khub::cpu {

const RowKernels* const rows_avx2 = nullptr;

}  // namespace khub::cpu

#endif
