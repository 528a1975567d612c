#include "hash.h"

namespace batch_planner {
namespace {

uint64_t rotate(uint64_t x, int bits) { return (x << bits) | (x >> (64 - bits)); }

struct SipHash {
  uint64_t a, b, c, d;

  explicit SipHash(const Hash& key)
      : a(key[0] ^ 0x736f6d6570736575),
        b(key[1] ^ 0x646f72616e646f6d ^ 0xee),  // 0xee: 128 bits of output
        c(key[0] ^ 0x6c7967656e657261),
        d(key[1] ^ 0x7465646279746573) {}

  void round() {
    a += b, b = rotate(b, 13) ^ a, a = rotate(a, 32);
    c += d, d = rotate(d, 16) ^ c;
    a += d, d = rotate(d, 21) ^ a;
    c += b, b = rotate(b, 17) ^ c, c = rotate(c, 32);
  }

  void absorb(uint64_t word) {
    d ^= word;
    round(), round();
    a ^= word;
  }

  uint64_t squeeze() {
    round(), round(), round(), round();
    return a ^ b ^ c ^ d;
  }

  Hash finish(uint64_t bytes) {
    absorb(bytes << 56);  // whole words only: the last one holds the length and no data
    c ^= 0xee;
    const uint64_t low = squeeze();
    b ^= 0xdd;
    return {low, squeeze()};
  }
};

}  // namespace

Hash hash_block(const Hash& key, const Hash& parent, const int64_t* tokens, int64_t count) {
  SipHash state(key);
  state.absorb(parent[0]);
  state.absorb(parent[1]);
  for (int64_t i = 0; i < count; ++i) state.absorb(static_cast<uint64_t>(tokens[i]));
  return state.finish(static_cast<uint64_t>(count + 2) * 8);
}

}  // namespace batch_planner
