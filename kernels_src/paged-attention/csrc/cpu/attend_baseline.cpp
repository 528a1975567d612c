// The attention loop for the instruction set every processor of the architecture has.
#include <cmath>
#include <cstring>
#include <type_traits>

#include "attention_cpu.h"

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

const AttendSpan attend_span_baseline = attend_span;

}  // namespace khub::cpu
