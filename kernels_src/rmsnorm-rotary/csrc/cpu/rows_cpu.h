#pragma once

#include <cstdint>

#include "../rows.h"

namespace khub::cpu {

// Rows (or tokens) [begin, end). Any split gives the same bits.
void rms_norm(const RmsNorm& norm, int64_t begin, int64_t end);
void silu_and_mul(const SiluAndMul& silu, int64_t begin, int64_t end);
void rotary(const Rotary& rotary, int64_t begin, int64_t end);

}  // namespace khub::cpu
