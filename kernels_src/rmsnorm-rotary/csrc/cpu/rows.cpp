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

// Up to two of the widest vectors, which are read and written whole.
size_t with_padding(int64_t size) { return size_t(size + 31) / 32 * 32; }

}  // namespace

void rms_norm(const RmsNorm& norm, int64_t begin, int64_t end) {
  std::vector<float> row(norm.residual && norm.dtype != DType::f32 ? with_padding(norm.size) : 0);
  chosen().rms_norm(norm, begin, end, row.data());
}

void activate(const Activation& a, int64_t begin, int64_t end) { chosen().activate(a, begin, end); }

void rotary(const Rotary& r, int64_t begin, int64_t end) {
  std::vector<float> angles(2 * with_padding(r.half));
  chosen().rotary(r, begin, end, angles.data());
}

void apply_rotary(const ApplyRotary& a, int64_t begin, int64_t end) { chosen().apply_rotary(a, begin, end); }

void qk_norm_rope_cache(const QkNormRopeCache& f, int64_t begin, int64_t end) {
  std::vector<float> angles(2 * with_padding(f.rotary.half));
  chosen().qk_norm_rope_cache(f, begin, end, angles.data());
}

}  // namespace khub::cpu
