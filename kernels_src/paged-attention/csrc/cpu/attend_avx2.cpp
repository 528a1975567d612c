// The attention loop for AVX2 with FMA and F16C.
#include <cmath>
#include <cstring>
#include <type_traits>

#include "attention_cpu.h"

#if defined(__x86_64__) && !defined(KHUB_BASELINE)  // which tests set to be given the other paths
#include <immintrin.h>

#pragma GCC target("avx2,fma,f16c")
#define KHUB_F16C
#pragma GCC diagnostic ignored "-Wpsabi"  // vectors cross inlined functions only

namespace khub::cpu {

namespace {

#define KHUB_LANES 8
#include "lanes.h"
//
#include "fp8_lanes.h"
//
#include "attend_dots.h"
#include "attend_impl.h"
//
#include "attend_blocks.h"

}  // namespace

const AttendSpan attend_span_avx2 = attend_span;

}  // namespace khub::cpu

#else

namespace khub::cpu {

const AttendSpan attend_span_avx2 = nullptr;

}  // namespace khub::cpu

#endif
