// Which keys a query token sees: a range of its sequence and, of the sequence's last 32 * words tokens, those
// whose bits its row of the tree mask has.
//
// Where there is a mask, distances (a window's, ALiBi's) count the keys that the token sees. So a node of a draft
// tree stands where it would at the end of its own line, and a mask of ones changes nothing.
#pragma once

#include "attention.h"

#if defined(__CUDACC__)
#define KHUB_ANYWHERE __host__ __device__ inline
#else
#define KHUB_ANYWHERE inline
#endif

namespace khub {

struct Visible {
  int64_t position;            // the token's place among the keys it sees
  int64_t first_key, end_key;  // the range; without a mask all of it is seen
  int64_t tail;                // the key of the mask's first bit, which may be before the sequence's first
  const int32_t* bits;         // the token's row of the mask, or null
};

KHUB_ANYWHERE bool sees(const Visible& v, int64_t key) {
  return !v.bits || key < v.tail || (uint32_t(v.bits[(key - v.tail) / 32]) >> ((key - v.tail) % 32) & 1u);
}

// How many keys before `key` are seen, whatever a window will cut off.
KHUB_ANYWHERE int64_t place_of(const Visible& v, int64_t key) {
  const int64_t start = v.tail > 0 ? v.tail : 0;
  if (!v.bits || key <= start) return key;
  int64_t place = start;
  for (int64_t first = start; first < key;) {
    const int64_t bit = first - v.tail, word = bit / 32 * 32;
    const int64_t until = key - v.tail < word + 32 ? key - v.tail : word + 32;
    uint32_t seen = uint32_t(v.bits[word / 32]) >> (bit - word);
    if (until - bit < 32) seen &= (1u << (until - bit)) - 1;
    for (; seen; seen &= seen - 1) ++place;
    first = v.tail + until;
  }
  return place;
}

// Of query token `token`, whose sequence has `length` keys and its last query token before `query_end`.
KHUB_ANYWHERE Visible visible_keys(const Attention& a, int64_t token, int64_t query_end, int64_t length) {
  Visible v;
  v.position = length - query_end + token;
  v.end_key = !a.causal || v.position >= length ? length : v.position + 1;
  v.tail = length - 32 * a.tree_mask_words;
  v.bits = a.tree_mask ? a.tree_mask + token * a.tree_mask_stride : nullptr;
  if (v.bits) v.position = place_of(v, v.end_key) - 1;
  v.first_key = 0;
  if (a.window && !v.bits) {
    v.first_key = v.position + 1 > a.window ? v.position + 1 - a.window : 0;
  } else if (a.window) {
    const int64_t start = v.tail > 0 ? v.tail : 0;
    int64_t key = v.end_key, left = a.window;
    while (left > 0 && key > start) left -= sees(v, --key);
    v.first_key = left == 0 ? key : key > left ? key - left : 0;
  }
  return v;
}

}  // namespace khub
