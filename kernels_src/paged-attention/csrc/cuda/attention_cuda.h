#pragma once

#include <cstdint>

#include "../attention.h"

namespace khub::cuda {

// Launchers: asynchronous on `stream` (a cudaStream_t), no allocation, no synchronisation.
// They return null, or what went wrong.
const char* attend(const Attention& attention, void* stream);
const char* write_cache(const CacheWrite& write, void* stream);

// cache[dst] = cache[src] for each pair (src, dst) of `mapping` [num_pairs, 2]. A block is `block_bytes`
// contiguous bytes, and blocks are `stride_bytes` apart.
const char* copy_blocks(void* cache, int64_t num_blocks, int64_t block_bytes, int64_t stride_bytes,
                        const int64_t* mapping, int64_t num_pairs, void* stream);

}  // namespace khub::cuda
