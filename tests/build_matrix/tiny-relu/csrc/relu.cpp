#include "relu.h"

std::string relu(float* out, const float* input, int64_t count, void*) {
  for (int64_t i = 0; i < count; ++i) out[i] = input[i] > 0 ? input[i] : 0;
  return {};
}
