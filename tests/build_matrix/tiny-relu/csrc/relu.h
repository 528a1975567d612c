#pragma once
#include <cstdint>
#include <string>

// Writes max(0, input) of `count` floats; returns an empty string or what went wrong.
std::string relu(float* out, const float* input, int64_t count, void* stream);
