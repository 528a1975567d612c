// The only file that knows torch: checks every argument, then hands raw pointers, sizes and strides to the
// kernels.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <optional>
#include <vector>

#include "registration.h"

#if defined(CPU_KERNEL)
#include "../csrc/cpu/attention_cpu.h"
#elif defined(CUDA_KERNEL)
#include "../csrc/cuda/attention_cuda.h"
#endif

namespace {

using khub::Attention;
using khub::CacheView;
using khub::CacheWrite;
using khub::DType;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

DType dtype_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return DType::f32;
    case ScalarType::Half: return DType::f16;
    case ScalarType::BFloat16: return DType::bf16;
    default: break;
  }
  STD_TORCH_CHECK(false, name, " must be float32, float16 or bfloat16, got ",
                  torch::headeronly::toString(tensor.scalar_type()));
}

void check_like(const Tensor& tensor, const char* name, const Tensor& reference, ScalarType dtype,
                int64_t dim) {
  STD_TORCH_CHECK(tensor.device() == reference.device(), name,
                  " must be on the device of the first argument");
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, name, " must be ", torch::headeronly::toString(dtype),
                  ", got ", torch::headeronly::toString(tensor.scalar_type()));
  STD_TORCH_CHECK(tensor.dim() == dim, name, " must have ", dim, " dimensions, got ", tensor.dim());
}

void check_size(const Tensor& tensor, const char* name, int64_t dim, int64_t size) {
  STD_TORCH_CHECK(tensor.size(dim) == size, name, " must have size ", size, " in dimension ", dim, ", got ",
                  tensor.size(dim));
}

void check_inner_stride(const Tensor& tensor, const char* name) {
  const int64_t last = tensor.dim() - 1;
  STD_TORCH_CHECK(tensor.size(last) <= 1 || tensor.stride(last) == 1, name,
                  " must be contiguous in its last dimension, got stride ", tensor.stride(last));
}

struct PagedCache {
  CacheView key, value;
  int64_t num_blocks, block_size, num_heads, head_size;
};

PagedCache paged_cache(const Tensor& key, const Tensor& value, const Tensor& reference) {
  const ScalarType dtype = reference.scalar_type();
  PagedCache cache;
  if (key.dim() == 4) {  // flash: [blocks, block_size, heads, head_size], both
    check_like(key, "key_cache", reference, dtype, 4);
    check_like(value, "value_cache", reference, dtype, 4);
    for (int64_t i = 0; i < 4; ++i) check_size(value, "value_cache", i, key.size(i));
    check_inner_stride(key, "key_cache");
    check_inner_stride(value, "value_cache");
    cache.num_blocks = key.size(0);
    cache.block_size = key.size(1);
    cache.num_heads = key.size(2);
    cache.head_size = key.size(3);
    const auto view = [&](const Tensor& t) {
      return CacheView{t.data_ptr(), t.stride(0), t.stride(1), t.stride(2), cache.head_size, 0, 1};
    };
    cache.key = view(key);
    cache.value = view(value);
  } else {  // classic: key [blocks, heads, head_size / x, block_size, x], value [blocks, heads, head_size,
            // block_size]
    check_like(key, "key_cache", reference, dtype, 5);
    check_like(value, "value_cache", reference, dtype, 4);
    check_inner_stride(key, "key_cache");
    cache.num_blocks = key.size(0);
    cache.num_heads = key.size(1);
    cache.head_size = key.size(2) * key.size(4);
    cache.block_size = key.size(3);
    check_size(value, "value_cache", 0, cache.num_blocks);
    check_size(value, "value_cache", 1, cache.num_heads);
    check_size(value, "value_cache", 2, cache.head_size);
    check_size(value, "value_cache", 3, cache.block_size);
    cache.key = {key.data_ptr(), key.stride(0), key.stride(3), key.stride(1), key.size(4), key.stride(2), 1};
    cache.value = {value.data_ptr(), value.stride(0), value.stride(3), value.stride(1), cache.head_size, 0,
                   value.stride(2)};
  }
  STD_TORCH_CHECK(cache.head_size >= 1, "key_cache must have a head size of at least 1, got ",
                  cache.head_size);
  STD_TORCH_CHECK(cache.block_size >= 1, "key_cache must have a block size of at least 1, got ",
                  cache.block_size);
  STD_TORCH_CHECK(cache.num_heads >= 1, "key_cache must have at least 1 KV head, got ", cache.num_heads);
  return cache;
}

#if defined(CPU_KERNEL)

// On the host the values are at hand, so they are checked too; on a device that would cost a synchronisation.
void check_values(const Attention& a) {
  if (a.query_start_loc) {
    STD_TORCH_CHECK(a.query_start_loc[0] == 0, "query_start_loc must start with 0, got ",
                    a.query_start_loc[0]);
    for (int64_t i = 0; i < a.num_seqs; ++i) {
      STD_TORCH_CHECK(a.query_start_loc[i] <= a.query_start_loc[i + 1],
                      "query_start_loc must not decrease, got ", a.query_start_loc[i + 1], " after ",
                      a.query_start_loc[i]);
    }
    STD_TORCH_CHECK(a.query_start_loc[a.num_seqs] == a.num_tokens, "query_start_loc must end with the ",
                    a.num_tokens, " tokens of query, got ", a.query_start_loc[a.num_seqs]);
  }
  for (int64_t seq = 0; seq < a.num_seqs; ++seq) {
    const int64_t length = a.seq_lens[seq];
    STD_TORCH_CHECK(length >= 0 && length <= a.max_blocks * a.block_size, "seq_lens[", seq,
                    "] must be between 0 and the ", a.max_blocks * a.block_size,
                    " slots of a block table, got ", length);
    for (int64_t i = 0; i * a.block_size < length; ++i) {
      const int64_t block = a.block_tables[seq * a.block_table_stride + i];
      STD_TORCH_CHECK(block >= 0 && block < a.num_blocks, "block_tables[", seq, ", ", i,
                      "] must be a block of the cache (0 to ", a.num_blocks - 1, "), got ", block);
    }
  }
}

void run(const Attention& a, const Tensor&) {
  check_values(a);
  const int64_t threads = torch::stable::get_num_threads();
  khub::cpu::Plan plan = khub::cpu::make_plan(a, threads);
  // Threads take items as they come: a core that somebody else is using takes fewer.
  std::atomic<int64_t> next{0};
  const int64_t items = int64_t(plan.items.size());
  torch::stable::parallel_for(0, std::min(threads, items), 1, [&](int64_t, int64_t) {
    khub::cpu::Workspace own;
    for (int64_t i = next++; i < items; i = next++) khub::cpu::attend(a, plan, own, i);
  });
  torch::stable::parallel_for(0, int64_t(plan.apart.size()), 1,
                              [&](int64_t begin, int64_t end) { khub::cpu::merge(a, plan, begin, end); });
}

void run(const CacheWrite& w, const Tensor&) {
  for (int64_t token = 0; token < w.num_tokens; ++token) {
    STD_TORCH_CHECK(w.slot_mapping[token] < w.num_blocks * w.block_size, "slot_mapping[", token,
                    "] must be below the ", w.num_blocks * w.block_size, " slots of the cache, got ",
                    w.slot_mapping[token]);
  }
  torch::stable::parallel_for(0, w.num_tokens, 16,
                              [&](int64_t begin, int64_t end) { khub::cpu::write_cache(w, begin, end); });
}

void run_copy(const Tensor& cache, int64_t block_bytes, int64_t stride_bytes, const Tensor& mapping) {
  const int64_t* pairs = mapping.const_data_ptr<int64_t>();
  char* data = static_cast<char*>(cache.data_ptr());
  for (int64_t i = 0; i < 2 * mapping.size(0); ++i) {
    STD_TORCH_CHECK(pairs[i] >= 0 && pairs[i] < cache.size(0),
                    "block_mapping must hold blocks of the cache (0 to ", cache.size(0) - 1, "), got ",
                    pairs[i]);
  }
  for (int64_t i = 0; i < mapping.size(0); ++i) {
    std::memmove(data + pairs[2 * i + 1] * stride_bytes, data + pairs[2 * i] * stride_bytes,
                 size_t(block_bytes));
  }
}

#elif defined(CUDA_KERNEL)

template <class Launch>
void on_stream(const Tensor& tensor, const Launch& launch) {
  const int32_t device = tensor.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  const char* error = launch(stream);
  STD_TORCH_CHECK(error == nullptr, "the CUDA kernel could not be launched: ", error);
}

void run(const Attention& a, const Tensor& query) {
  on_stream(query, [&](void* stream) { return khub::cuda::attend(a, stream); });
}

void run(const CacheWrite& w, const Tensor& key) {
  on_stream(key, [&](void* stream) { return khub::cuda::write_cache(w, stream); });
}

void run_copy(const Tensor& cache, int64_t block_bytes, int64_t stride_bytes, const Tensor& mapping) {
  on_stream(cache, [&](void* stream) {
    return khub::cuda::copy_blocks(cache.data_ptr(), cache.size(0), block_bytes, stride_bytes,
                                   mapping.const_data_ptr<int64_t>(), mapping.size(0), stream);
  });
}

#endif

void attend(const Tensor& out, const std::optional<Tensor>& lse, const Tensor& query, const Tensor& key_cache,
            const Tensor& value_cache, const Tensor& block_tables, const Tensor& seq_lens,
            const std::optional<Tensor>& query_start_loc, const std::optional<Tensor>& alibi_slopes,
            const std::optional<Tensor>& tree_mask, double scale, bool causal, int64_t window, double softcap) {
  Attention a = {};
  a.dtype = dtype_of(query, "query");
  check_like(query, "query", query, query.scalar_type(), 3);
  check_inner_stride(query, "query");
  a.num_tokens = query.size(0);
  a.num_heads = query.size(1);
  a.head_size = query.size(2);
  check_like(out, "out", query, query.scalar_type(), 3);
  for (int64_t i = 0; i < 3; ++i) check_size(out, "out", i, query.size(i));
  check_inner_stride(out, "out");

  const PagedCache cache = paged_cache(key_cache, value_cache, query);
  STD_TORCH_CHECK(cache.head_size == a.head_size, "key_cache must have the head size of query, ", a.head_size,
                  ", got ", cache.head_size);
  STD_TORCH_CHECK(a.head_size <= 256, "query must have a head size of at most 256, got ", a.head_size);
  STD_TORCH_CHECK(a.num_heads % cache.num_heads == 0, "query must have a multiple of the ", cache.num_heads,
                  " KV heads of key_cache, got ", a.num_heads, " heads");
  a.num_kv_heads = cache.num_heads;
  a.num_blocks = cache.num_blocks;
  a.block_size = cache.block_size;
  a.key = cache.key;
  a.value = cache.value;

  check_like(seq_lens, "seq_lens", query, ScalarType::Int, 1);
  check_inner_stride(seq_lens, "seq_lens");
  a.num_seqs = seq_lens.size(0);
  check_like(block_tables, "block_tables", query, ScalarType::Int, 2);
  check_size(block_tables, "block_tables", 0, a.num_seqs);
  check_inner_stride(block_tables, "block_tables");
  a.max_blocks = block_tables.size(1);
  a.block_tables = block_tables.const_data_ptr<int32_t>();
  a.block_table_stride = block_tables.stride(0);
  a.seq_lens = seq_lens.const_data_ptr<int32_t>();
  if (query_start_loc) {
    check_like(*query_start_loc, "query_start_loc", query, ScalarType::Int, 1);
    check_size(*query_start_loc, "query_start_loc", 0, a.num_seqs + 1);
    check_inner_stride(*query_start_loc, "query_start_loc");
    a.query_start_loc = query_start_loc->const_data_ptr<int32_t>();
  } else {
    check_size(query, "query", 0, a.num_seqs);
  }
  STD_TORCH_CHECK(a.num_tokens == 0 || a.num_seqs > 0, "query has ", a.num_tokens,
                  " tokens, but seq_lens names no sequence");
  if (alibi_slopes) {
    check_like(*alibi_slopes, "alibi_slopes", query, ScalarType::Float, 1);
    check_size(*alibi_slopes, "alibi_slopes", 0, a.num_heads);
    check_inner_stride(*alibi_slopes, "alibi_slopes");
    a.alibi_slopes = alibi_slopes->const_data_ptr<float>();
  }
  if (tree_mask) {
    STD_TORCH_CHECK(causal, "tree_mask needs causal attention");
    check_like(*tree_mask, "tree_mask", query, ScalarType::Int, 2);
    check_size(*tree_mask, "tree_mask", 0, a.num_tokens);
    STD_TORCH_CHECK(tree_mask->size(1) >= 1, "tree_mask must have a word of 32 tokens or more, got none");
    check_inner_stride(*tree_mask, "tree_mask");
    a.tree_mask = tree_mask->const_data_ptr<int32_t>();
    a.tree_mask_stride = tree_mask->stride(0);
    a.tree_mask_words = tree_mask->size(1);
  }
  if (lse) {
    check_like(*lse, "lse", query, ScalarType::Float, 2);
    check_size(*lse, "lse", 0, a.num_tokens);
    check_size(*lse, "lse", 1, a.num_heads);
    STD_TORCH_CHECK(lse->is_contiguous(), "lse must be contiguous");
    a.lse = lse->mutable_data_ptr<float>();
  }
  STD_TORCH_CHECK(window >= 0, "window must not be negative, got ", window);
  STD_TORCH_CHECK(causal || window == 0, "window needs causal attention");
  STD_TORCH_CHECK(softcap >= 0, "softcap must not be negative, got ", softcap);
  a.query = query.data_ptr();
  a.query_token_stride = query.stride(0);
  a.query_head_stride = query.stride(1);
  a.out = out.data_ptr();
  a.out_token_stride = out.stride(0);
  a.out_head_stride = out.stride(1);
  a.scale = float(scale);
  a.softcap = float(softcap);
  a.window = window;
  a.causal = causal;
  run(a, query);
}

void reshape_and_cache(const Tensor& key, const Tensor& value, const Tensor& key_cache,
                       const Tensor& value_cache, const Tensor& slot_mapping) {
  dtype_of(key, "key");
  check_like(key, "key", key, key.scalar_type(), 3);
  check_inner_stride(key, "key");
  check_like(value, "value", key, key.scalar_type(), 3);
  for (int64_t i = 0; i < 3; ++i) check_size(value, "value", i, key.size(i));
  check_inner_stride(value, "value");
  const PagedCache cache = paged_cache(key_cache, value_cache, key);
  check_size(key, "key", 1, cache.num_heads);
  check_size(key, "key", 2, cache.head_size);
  check_like(slot_mapping, "slot_mapping", key, ScalarType::Long, 1);
  check_inner_stride(slot_mapping, "slot_mapping");
  // A step padded for a CUDA graph has more keys than slots; the rest is not written.
  STD_TORCH_CHECK(slot_mapping.size(0) <= key.size(0), "slot_mapping must not be longer than the ",
                  key.size(0), " tokens of key, got ", slot_mapping.size(0));
  CacheWrite w = {};
  w.itemsize = int64_t(key.element_size());
  w.num_tokens = slot_mapping.size(0);
  w.num_heads = cache.num_heads;
  w.head_size = cache.head_size;
  w.num_blocks = cache.num_blocks;
  w.block_size = cache.block_size;
  w.key = key.data_ptr();
  w.key_token_stride = key.stride(0);
  w.key_head_stride = key.stride(1);
  w.value = value.data_ptr();
  w.value_token_stride = value.stride(0);
  w.value_head_stride = value.stride(1);
  w.key_cache = cache.key;
  w.value_cache = cache.value;
  w.slot_mapping = slot_mapping.const_data_ptr<int64_t>();
  run(w, key);
}

// The bytes of one block, which must be contiguous whatever the distance between blocks.
int64_t block_bytes(const Tensor& cache) {
  int64_t items = 1;
  for (int64_t i = cache.dim() - 1; i > 0; --i) {
    STD_TORCH_CHECK(cache.size(i) <= 1 || cache.stride(i) == items,
                    "caches must have contiguous blocks, got stride ", cache.stride(i), " in dimension ", i);
    items *= cache.size(i);
  }
  return items * int64_t(cache.element_size());
}

void copy_blocks(const std::vector<Tensor>& key_caches, const std::vector<Tensor>& value_caches,
                 const Tensor& block_mapping) {
  check_like(block_mapping, "block_mapping", block_mapping, ScalarType::Long, 2);
  check_size(block_mapping, "block_mapping", 1, 2);
  STD_TORCH_CHECK(block_mapping.is_contiguous(), "block_mapping must be contiguous");
  STD_TORCH_CHECK(key_caches.size() == value_caches.size(), "value_caches must be as many as the ",
                  key_caches.size(), " key_caches, got ", value_caches.size());
  for (const auto* caches : {&key_caches, &value_caches}) {
    for (const Tensor& cache : *caches) {
      STD_TORCH_CHECK(cache.device() == block_mapping.device(),
                      "caches must be on the device of block_mapping");
      dtype_of(cache, "caches");
      STD_TORCH_CHECK(cache.dim() >= 2, "caches must have blocks in dimension 0, got ", cache.dim(),
                      " dimensions");
      block_bytes(cache);
    }
  }
  for (const auto* caches : {&key_caches, &value_caches}) {
    for (const Tensor& cache : *caches) {
      run_copy(cache, block_bytes(cache), cache.stride(0) * int64_t(cache.element_size()), block_mapping);
    }
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_EXPAND(TORCH_EXTENSION_NAME, ops) {
  ops.def(
      "attend(Tensor(a!) out, Tensor(b!)? lse, Tensor query, Tensor key_cache, Tensor value_cache, "
      "Tensor block_tables, Tensor seq_lens, Tensor? query_start_loc, Tensor? alibi_slopes, Tensor? tree_mask, "
      "float scale, bool causal, int window, float softcap) -> ()");
  ops.def(
      "reshape_and_cache(Tensor key, Tensor value, Tensor(a!) key_cache, Tensor(b!) value_cache, "
      "Tensor slot_mapping) -> ()");
  ops.def("copy_blocks(Tensor(a!)[] key_caches, Tensor(b!)[] value_caches, Tensor block_mapping) -> ()");
}

#if defined(CPU_KERNEL)
STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME, CPU, ops) {
#elif defined(CUDA_KERNEL)
STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME, CUDA, ops) {
#endif
  ops.impl("attend", TORCH_BOX(&attend));
  ops.impl("reshape_and_cache", TORCH_BOX(&reshape_and_cache));
  ops.impl("copy_blocks", TORCH_BOX(&copy_blocks));
}

REGISTER_EXTENSION(TORCH_EXTENSION_NAME)
