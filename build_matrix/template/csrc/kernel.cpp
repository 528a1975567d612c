#include "kernel.h"

const char* scale_add(float* out, const float* x, const float* y, float scale, std::int64_t count, void*) {
  for (std::int64_t i = 0; i < count; ++i) {
    out[i] = scale * x[i] + y[i];
  }
  return nullptr;
}
