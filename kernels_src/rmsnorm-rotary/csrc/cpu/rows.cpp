// The row kernels, compiled for the baseline and, on x86-64, for AVX2 with FMA; the processor picks at run
// time.
#include <cmath>
#include <vector>

#include "rows_cpu.h"

#if defined(__x86_64__) && !defined(KHUB_BASELINE)
#define KHUB_AVX2  // -DKHUB_BASELINE leaves it out, to test the other path on a machine that has it
#endif

#pragma GCC diagnostic ignored "-Wpsabi"  // vectors cross inlined functions only

namespace khub::cpu {

namespace {

namespace baseline {
#include "lanes.h"
//
#include "rows_impl.h"
}  // namespace baseline

#if defined(KHUB_AVX2)
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
#include "lanes.h"
//
#include "rows_impl.h"
}  // namespace avx2
#pragma GCC pop_options

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#define KHUB_PICK(call) (has_avx2() ? avx2::call : baseline::call)
#else
#define KHUB_PICK(call) baseline::call
#endif

}  // namespace

void rms_norm(const RmsNorm& norm, int64_t begin, int64_t end) { KHUB_PICK(rms_norm(norm, begin, end)); }

void silu_and_mul(const SiluAndMul& silu, int64_t begin, int64_t end) {
  KHUB_PICK(silu_and_mul(silu, begin, end));
}

void rotary(const Rotary& r, int64_t begin, int64_t end) { KHUB_PICK(rotary(r, begin, end)); }

}  // namespace khub::cpu
