// What the binding calls: plain pointers and sizes, so that the sources behind it include no torch header
// and compile in a second.
#pragma once

#include <cstdint>

// out[i] = scale * x[i] + y[i] for i in [0, count). `stream` is a cudaStream_t, unused on the CPU.
// Returns what went wrong, or null.
const char* scale_add(float* out, const float* x, const float* y, float scale, std::int64_t count, void* stream);
