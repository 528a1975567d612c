// Attention on tensor cores over caches of the query's type, and who is taken there.
#include "attend_mma.h"

#include "attend_wgmma.h"

namespace khub::cuda {

namespace {

bool rows_of_16_bytes(const Attention& a, const CacheView& view) {
  const int64_t piece = a.cache_type == CacheType::same ? 8 : 16;
  return view.dim_stride == 1 && view.chunk >= a.head_size && reinterpret_cast<uintptr_t>(view.data) % 16 == 0 &&
         a.head_size % piece == 0 && (view.block_stride | view.slot_stride | view.head_stride) % piece == 0;
}

}  // namespace

bool fits_mma(const Attention& a) {
  return a.dtype != DType::f32 && a.head_size <= 256 && rows_of_16_bytes(a, a.key) && rows_of_16_bytes(a, a.value) &&
         a.max_blocks * a.block_size <= kMostKeys && a.num_kv_heads <= 0xffff && a.num_seqs * 64 <= 0x7fffffff &&
         a.num_tokens * a.num_heads / a.num_kv_heads <= 0x7fffffff && (a.query_start_loc || split_of(a).rows > 0);
}

int64_t attend_mma_floats(const Attention& a) {
  return attend_partials(a) + (fits_wgmma(a) ? attend_plan_words(a) : 0);
}

const char* attend_mma(const Attention& a, float* partials, void* stream) {
  if (fits_wgmma(a)) return attend_wgmma(a, partials, stream);
  return a.cache_type == CacheType::same ? attend_half<false>(a, partials, stream)
                                         : attend_mma_fp8(a, partials, stream);
}

}  // namespace khub::cuda
