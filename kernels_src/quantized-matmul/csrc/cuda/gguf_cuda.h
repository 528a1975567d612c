#pragma once

#include "../gguf.h"

namespace khub::cuda {

// Asynchronous on `stream` (a cudaStream_t), no allocation, no synchronisation. Returns null, or what went
// wrong.
const char* matmul(const GgufMatmul& q, void* stream);

}  // namespace khub::cuda
