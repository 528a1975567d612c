// Attention on tensor cores over FP8 caches.
#include "attend_mma.h"

namespace khub::cuda {

const char* attend_mma_fp8(const Attention& a, float* partials, void* stream) {
  return attend_half<true>(a, partials, stream);
}

}  // namespace khub::cuda
