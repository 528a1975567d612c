// Stripes of x, and which instruction set multiplies them.
#include "blocks.h"

#include <algorithm>
#include <vector>

#include "matmul_cpu.h"

namespace khub::cpu {

namespace {

MultiplyBlock pick() {
  switch (processor()) {
    case Processor::amx:
    case Processor::vnni: return multiply_block_vnni;
    case Processor::avx2: return multiply_block_avx2;
    default: return nullptr;
  }
}

}  // namespace

bool takes_blocks(const QuantizedMatmul& q) {
  return q.dtype == DType::f32 && q.m >= kManyRows && pick() != nullptr;
}

void fill_stripes(const QuantizedMatmul& q, const Stripes& x, int64_t begin, int64_t end) {
  for (int64_t s = begin; s < end; ++s) {
    float* to = x.values + s * q.k * kStripe;
    for (int64_t r = 0; r < kStripe; ++r) {
      const int64_t row = s * kStripe + r;
      const float* from = static_cast<const float*>(q.x) + (x.first + row) * q.x_stride;
      for (int64_t k = 0; k < q.k; ++k) to[k * kStripe + r] = row < x.rows ? from[k] : 0.0f;
    }
  }
}

void multiply_blocks(const QuantizedMatmul& q, const Stripes& x, int64_t begin, int64_t end) {
  static const MultiplyBlock multiply_block = pick();
  std::vector<float> panels(size_t(kBlockRows * kBlockK + 16));
  multiply_block(q, x, begin, end, on_line(panels.data()));
}

}  // namespace khub::cpu
