// The attention loop for AVX-512 (F, BW, DQ, VL).
#include <cmath>
#include <cstring>
#include <type_traits>

#include "attention_cpu.h"

#if defined(__x86_64__) && !defined(KHUB_BASELINE)  // which tests set to be given the other paths
#include <immintrin.h>

#if defined(KHUB_EMULATE_AVX512)  // 16 lanes on a processor of 8: the same code, lowered to AVX2
#pragma GCC target("avx2,fma,f16c")
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")
#define KHUB_F16C
#endif
#pragma GCC diagnostic ignored "-Wpsabi"  // vectors cross inlined functions only

namespace khub::cpu {

namespace {

#define KHUB_LANES 16
#include "lanes.h"
//
#include "fp8_lanes.h"
//
#include "attend_dots.h"
#include "attend_impl.h"
//
#include "attend_blocks.h"

}  // namespace

const AttendSpan attend_span_avx512 = attend_span;

}  // namespace khub::cpu

#else

namespace khub::cpu {

const AttendSpan attend_span_avx512 = nullptr;

}  // namespace khub::cpu

#endif
