// A keyed 128-bit hash, for the identity of blocks of tokens.
#pragma once

#include <array>
#include <cstdint>

namespace batch_planner {

using Hash = std::array<uint64_t, 2>;

// SipHash-2-4 with 128 bits of output (Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012, and
// the authors' 128-bit variant) of the little-endian bytes of `parent` followed by those of `tokens`.
Hash hash_block(const Hash& key, const Hash& parent, const int64_t* tokens, int64_t count);

}  // namespace batch_planner
