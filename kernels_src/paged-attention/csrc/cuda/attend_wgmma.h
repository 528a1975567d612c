// Attention on compute capability 9.0, of what attend_mma takes.
#pragma once

#include "attention_cuda.h"

namespace khub::cuda {

bool fits_wgmma(const Attention& attention);  // on the current device
int64_t attend_plan_words(const Attention& attention);

// `partials` has room for the partial sums and, after them, for the plan.
const char* attend_wgmma(const Attention& attention, float* partials, void* stream);

}  // namespace khub::cuda
