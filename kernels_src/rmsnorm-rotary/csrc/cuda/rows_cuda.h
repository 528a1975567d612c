#pragma once

#include "../rows.h"

namespace khub::cuda {

// Launchers: asynchronous on `stream` (a cudaStream_t), no allocation, no synchronisation.
// They return null, or what went wrong.
const char* rms_norm(const RmsNorm& norm, void* stream);
const char* activate(const Activation& activation, void* stream);
const char* rotary(const Rotary& rotary, void* stream);
const char* apply_rotary(const ApplyRotary& apply, void* stream);
const char* qk_norm_rope_cache(const QkNormRopeCache& fused, void* stream);

}  // namespace khub::cuda
