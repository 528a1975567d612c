// The attention loop, compiled for the baseline and, on x86-64, for AVX2 with FMA; the processor picks at run
// time.
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "attention_cpu.h"

#if defined(__x86_64__) && !defined(KHUB_BASELINE)
#define KHUB_AVX2  // -DKHUB_BASELINE leaves it out, to test the other path on a machine that has it
#endif

#pragma GCC diagnostic ignored "-Wpsabi"  // vectors cross inlined functions only

namespace khub::cpu {

namespace {

namespace baseline {
#include "lanes.h"
//
#include "attend_impl.h"
}  // namespace baseline

#if defined(KHUB_AVX2)
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
#include "lanes.h"
//
#include "attend_impl.h"
}  // namespace avx2
#pragma GCC pop_options
#endif

constexpr int64_t kTileTokens = 8;

}  // namespace

std::vector<Tile> plan_tiles(const Attention& a) {
  std::vector<Tile> tiles;
  for (int64_t seq = 0; seq < a.num_seqs; ++seq) {
    const int64_t end = a.query_start_loc ? a.query_start_loc[seq + 1] : seq + 1;
    for (int64_t token = a.query_start_loc ? a.query_start_loc[seq] : seq; token < end;
         token += kTileTokens) {
      tiles.push_back({seq, token, std::min(kTileTokens, end - token)});
    }
  }
  return tiles;
}

void attend(const Attention& a, const std::vector<Tile>& tiles, int64_t begin, int64_t end) {
#if defined(KHUB_AVX2)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return avx2::attend(a, tiles, begin, end);
#endif
  baseline::attend(a, tiles, begin, end);
}

}  // namespace khub::cpu
