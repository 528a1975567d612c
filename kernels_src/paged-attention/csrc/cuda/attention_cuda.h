#pragma once

#include <cstdint>

#include "../attention.h"

namespace khub::cuda {

// Launchers: asynchronous on `stream` (a cudaStream_t), no allocation, no synchronisation.
// They return null, or what went wrong.
const char* attend(const Attention& attention, void* stream);

// The same on tensor cores, for what they can take: queries of half precision, and heads that are rows of 16-byte
// pieces. It needs memory for partial sums and a plan, so many floats (none: 0).
bool fits_mma(const Attention& attention);
int64_t attend_mma_floats(const Attention& attention);
const char* attend_mma(const Attention& attention, float* partials, void* stream);
const char* attend_mma_fp8(const Attention& attention, float* partials, void* stream);  // its part for FP8 caches
const char* write_cache(const CacheWrite& write, void* stream);
const char* convert(const Convert& convert, void* stream);
const char* merge_states(const Merge& merge, void* stream);

// cache[dst] = cache[src] for each pair (src, dst) of `mapping` [num_pairs, 2]. A block is `block_bytes`
// contiguous bytes, and blocks are `stride_bytes` apart.
const char* copy_blocks(void* cache, int64_t num_blocks, int64_t block_bytes, int64_t stride_bytes,
                        const int64_t* mapping, int64_t num_pairs, void* stream);

}  // namespace khub::cuda
