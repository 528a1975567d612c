// Which instruction set does the work, decided once, and the memory it works in.
#include <vector>

#include "rows_cpu.h"

namespace khub::cpu {

namespace {

const RowKernels& pick() {
#if defined(KHUB_EMULATE_AVX512)
  return *rows_avx512;
#elif defined(__x86_64__)
  __builtin_cpu_init();
  if (rows_avx512 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return *rows_avx512;
  }
  if (rows_avx2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    return *rows_avx2;
  }
#endif
  return *rows_baseline;
}

const RowKernels& chosen() {
  static const RowKernels& kernels = pick();
  return kernels;
}

}  // namespace

void rms_norm(const RmsNorm& norm, int64_t begin, int64_t end) {
  std::vector<float> row(size_t(norm.size));
  chosen().rms_norm(norm, begin, end, row.data());
}

void silu_and_mul(const SiluAndMul& silu, int64_t begin, int64_t end) {
  chosen().silu_and_mul(silu, begin, end);
}

void rotary(const Rotary& r, int64_t begin, int64_t end) {
  std::vector<float> angles(size_t(2 * r.half));
  chosen().rotary(r, begin, end, angles.data());
}

void apply_rotary(const ApplyRotary& a, int64_t begin, int64_t end) { chosen().apply_rotary(a, begin, end); }

void qk_norm_rope_cache(const QkNormRopeCache& f, int64_t begin, int64_t end) {
  std::vector<float> angles(size_t(2 * f.rotary.half)), row(size_t(f.head_size));
  chosen().qk_norm_rope_cache(f, begin, end, angles.data(), row.data());
}

}  // namespace khub::cpu
