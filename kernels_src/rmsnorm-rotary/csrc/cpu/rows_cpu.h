#pragma once

#include <cstdint>
#include <initializer_list>

#include "../rows.h"

namespace khub::cpu {

// Rows (or tokens) [begin, end). Any split gives the same bits.
void rms_norm(const RmsNorm& norm, int64_t begin, int64_t end);
void activate(const Activation& activation, int64_t begin, int64_t end);
void rotary(const Rotary& rotary, int64_t begin, int64_t end);
void apply_rotary(const ApplyRotary& apply, int64_t begin, int64_t end);
void qk_norm_rope_cache(const QkNormRopeCache& fused, int64_t begin, int64_t end);

// The same loops, each compiled for its own instruction set; null where the build has none of it. `row` holds
// norm.size floats where there is a residual of another dtype than float32, `angles` 2 * rotary.half, each size rounded up to a multiple of 32.
struct RowKernels {
  void (*rms_norm)(const RmsNorm& norm, int64_t begin, int64_t end, float* row);
  void (*activate)(const Activation& activation, int64_t begin, int64_t end);
  void (*rotary)(const Rotary& rotary, int64_t begin, int64_t end, float* angles);
  void (*apply_rotary)(const ApplyRotary& apply, int64_t begin, int64_t end);
  void (*qk_norm_rope_cache)(const QkNormRopeCache& fused, int64_t begin, int64_t end, float* angles);
};

extern const RowKernels* const rows_baseline;
extern const RowKernels* const rows_avx2;
extern const RowKernels* const rows_avx512;

}  // namespace khub::cpu
