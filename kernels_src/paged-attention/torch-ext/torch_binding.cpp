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
using khub::CacheType;
using khub::CacheView;
using khub::CacheWrite;
using khub::Convert;
using khub::DType;
using khub::Merge;
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

bool is_fp8(ScalarType dtype) {
  return dtype == ScalarType::Float8_e4m3fn || dtype == ScalarType::Float8_e5m2;
}

CacheType cache_type_of(ScalarType dtype) {
  if (!is_fp8(dtype)) return CacheType::same;
  return dtype == ScalarType::Float8_e4m3fn ? CacheType::e4m3 : CacheType::e5m2;
}

const float* scale_of(const std::optional<Tensor>& scale, const char* name, const Tensor& reference, CacheType type) {
  if (!scale) return nullptr;
  STD_TORCH_CHECK(type != CacheType::same, name, " needs an FP8 cache: leave it out, the dtype of key_cache is ",
                  torch::headeronly::toString(reference.scalar_type()));
  check_like(*scale, name, reference, ScalarType::Float, scale->dim());
  STD_TORCH_CHECK(scale->numel() == 1, name, " must have 1 element, got ", scale->numel());
  return scale->const_data_ptr<float>();
}

struct PagedCache {
  CacheType type;
  CacheView key, value;
  int64_t num_blocks, block_size, num_heads, head_size;
};

PagedCache paged_cache(const Tensor& key, const Tensor& value, const Tensor& reference) {
  const ScalarType dtype = key.scalar_type();
  STD_TORCH_CHECK(dtype == reference.scalar_type() || is_fp8(dtype), "key_cache must be ",
                  torch::headeronly::toString(reference.scalar_type()),
                  ", Float8_e4m3fn or Float8_e5m2, got ", torch::headeronly::toString(dtype));
  PagedCache cache;
  cache.type = cache_type_of(dtype);
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

void run(const Merge& m, const Tensor&) {
  torch::stable::parallel_for(0, m.num_tokens, 4,
                              [&](int64_t begin, int64_t end) { khub::cpu::merge_states(m, begin, end); });
}

void run(const Convert& c, const Tensor&) {
  torch::stable::parallel_for(0, c.num_blocks, 1,
                              [&](int64_t begin, int64_t end) { khub::cpu::convert(c, begin, end); });
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
  if (a.num_tokens == 0) return;
  const torch::stable::accelerator::DeviceGuard guard(query.get_device_index());  // whose kind decides what is run
  if (!khub::cuda::fits_mma(a)) {
    on_stream(query, [&](void* stream) { return khub::cuda::attend(a, stream); });
    return;
  }
  // From the allocator of torch, which a CUDA graph captures too; whoever gets it next is behind us on the stream.
  const Tensor partials =
      torch::stable::new_empty(query, {khub::cuda::attend_mma_floats(a)}, ScalarType::Float);
  on_stream(query, [&](void* stream) {
    return khub::cuda::attend_mma(a, partials.mutable_data_ptr<float>(), stream);
  });
}

void run(const CacheWrite& w, const Tensor& key) {
  on_stream(key, [&](void* stream) { return khub::cuda::write_cache(w, stream); });
}

void run(const Merge& m, const Tensor& out) {
  on_stream(out, [&](void* stream) { return khub::cuda::merge_states(m, stream); });
}

void run(const Convert& c, const Tensor& output) {
  on_stream(output, [&](void* stream) { return khub::cuda::convert(c, stream); });
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
            const std::optional<Tensor>& sinks, const std::optional<Tensor>& k_scale,
            const std::optional<Tensor>& v_scale, const std::optional<Tensor>& tree_mask, double scale, bool causal, int64_t window, double softcap) {
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
  a.cache_type = cache.type;
  a.key = cache.key;
  a.value = cache.value;
  a.k_scale = scale_of(k_scale, "k_scale", query, cache.type);
  a.v_scale = scale_of(v_scale, "v_scale", query, cache.type);

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
  const auto of_heads = [&](const std::optional<Tensor>& tensor, const char* name) -> const float* {
    if (!tensor) return nullptr;
    check_like(*tensor, name, query, ScalarType::Float, 1);
    check_size(*tensor, name, 0, a.num_heads);
    check_inner_stride(*tensor, name);
    return tensor->const_data_ptr<float>();
  };
  a.alibi_slopes = of_heads(alibi_slopes, "alibi_slopes");
  a.sinks = of_heads(sinks, "sinks");
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
                       const Tensor& value_cache, const Tensor& slot_mapping, const std::optional<Tensor>& k_scale,
                       const std::optional<Tensor>& v_scale) {
  CacheWrite w = {};
  w.dtype = dtype_of(key, "key");
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
  w.cache_type = cache.type;
  w.k_scale = scale_of(k_scale, "k_scale", key, cache.type);
  w.v_scale = scale_of(v_scale, "v_scale", key, cache.type);
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

// The numbers of one block, which must be contiguous whatever the distance between blocks.
int64_t block_items(const Tensor& cache, const char* name) {
  int64_t items = 1;
  for (int64_t i = cache.dim() - 1; i > 0; --i) {
    STD_TORCH_CHECK(cache.size(i) <= 1 || cache.stride(i) == items, name,
                    " must have contiguous blocks, got stride ", cache.stride(i), " in dimension ", i);
    items *= cache.size(i);
  }
  return items;
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
      if (cache.element_size() > 1) dtype_of(cache, "caches");  // one byte of any kind is copied as it is
      STD_TORCH_CHECK(cache.dim() >= 2, "caches must have blocks in dimension 0, got ", cache.dim(),
                      " dimensions");
      block_items(cache, "caches");
    }
  }
  for (const auto* caches : {&key_caches, &value_caches}) {
    for (const Tensor& cache : *caches) {
      const int64_t size = int64_t(cache.element_size());
      run_copy(cache, block_items(cache, "caches") * size, cache.stride(0) * size, block_mapping);
    }
  }
}

void convert_fp8(const Tensor& output, const Tensor& input, double scale) {
  Convert c = {};
  c.narrow = is_fp8(output.scalar_type());
  STD_TORCH_CHECK(c.narrow != is_fp8(input.scalar_type()),
                  "one of output and input must be Float8_e4m3fn or Float8_e5m2 and the other not, got ",
                  torch::headeronly::toString(output.scalar_type()), " and ",
                  torch::headeronly::toString(input.scalar_type()));
  c.dtype = c.narrow ? dtype_of(input, "input") : dtype_of(output, "output");
  c.cache_type = cache_type_of(c.narrow ? output.scalar_type() : input.scalar_type());
  check_like(input, "input", output, input.scalar_type(), output.dim());
  STD_TORCH_CHECK(output.dim() >= 1, "output must have a dimension or more, got none");
  for (int64_t i = 0; i < output.dim(); ++i) check_size(input, "input", i, output.size(i));
  c.block_items = block_items(output, "output");
  block_items(input, "input");
  c.num_blocks = output.size(0);
  c.input = input.data_ptr();
  c.input_block_stride = input.stride(0);
  c.output = output.data_ptr();
  c.output_block_stride = output.stride(0);
  c.scale = float(scale);
  if (c.num_blocks > 0 && c.block_items > 0) run(c, output);
}

void merge_states(const Tensor& out, const Tensor& out_lse, const Tensor& out_a, const Tensor& lse_a,
                  const Tensor& out_b, const Tensor& lse_b) {
  Merge m = {};
  m.dtype = dtype_of(out_a, "out_a");
  const auto check_out = [&](const Tensor& tensor, const char* name) {
    check_like(tensor, name, out_a, out_a.scalar_type(), 3);
    for (int64_t i = 0; i < 3; ++i) check_size(tensor, name, i, out_a.size(i));
    check_inner_stride(tensor, name);
  };
  const auto check_lse = [&](const Tensor& tensor, const char* name) {
    check_like(tensor, name, out_a, ScalarType::Float, 2);
    for (int64_t i = 0; i < 2; ++i) check_size(tensor, name, i, out_a.size(i));
    STD_TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous");
  };
  check_out(out_a, "out_a");
  check_out(out_b, "out_b");
  check_out(out, "out");
  check_lse(lse_a, "lse_a");
  check_lse(lse_b, "lse_b");
  check_lse(out_lse, "out_lse");
  m.num_tokens = out_a.size(0);
  m.num_heads = out_a.size(1);
  m.head_size = out_a.size(2);
  m.parts[0] = {out_a.data_ptr(), out_a.stride(0), out_a.stride(1), lse_a.const_data_ptr<float>()};
  m.parts[1] = {out_b.data_ptr(), out_b.stride(0), out_b.stride(1), lse_b.const_data_ptr<float>()};
  m.out = out.data_ptr();
  m.out_token_stride = out.stride(0);
  m.out_head_stride = out.stride(1);
  m.out_lse = out_lse.mutable_data_ptr<float>();
  run(m, out_a);
}

}  // namespace

STABLE_TORCH_LIBRARY_EXPAND(TORCH_EXTENSION_NAME, ops) {
  ops.def(
      "attend(Tensor(a!) out, Tensor(b!)? lse, Tensor query, Tensor key_cache, Tensor value_cache, "
      "Tensor block_tables, Tensor seq_lens, Tensor? query_start_loc, Tensor? alibi_slopes, Tensor? sinks, "
      "Tensor? k_scale, Tensor? v_scale, Tensor? tree_mask, float scale, bool causal, int window, float softcap) -> ()");
  ops.def(
      "reshape_and_cache(Tensor key, Tensor value, Tensor(a!) key_cache, Tensor(b!) value_cache, "
      "Tensor slot_mapping, Tensor? k_scale, Tensor? v_scale) -> ()");
  ops.def(
      "merge_states(Tensor(a!) out, Tensor(b!) out_lse, Tensor out_a, Tensor lse_a, Tensor out_b, "
      "Tensor lse_b) -> ()");
  ops.def("convert_fp8(Tensor(a!) output, Tensor input, float scale) -> ()");
  ops.def("copy_blocks(Tensor(a!)[] key_caches, Tensor(b!)[] value_caches, Tensor block_mapping) -> ()");
}

#if defined(CPU_KERNEL)
STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME, CPU, ops) {
#elif defined(CUDA_KERNEL)
STABLE_TORCH_LIBRARY_IMPL_EXPAND(TORCH_EXTENSION_NAME, CUDA, ops) {
#endif
  ops.impl("attend", TORCH_BOX(&attend));
  ops.impl("reshape_and_cache", TORCH_BOX(&reshape_and_cache));
  ops.impl("merge_states", TORCH_BOX(&merge_states));
  ops.impl("convert_fp8", TORCH_BOX(&convert_fp8));
  ops.impl("copy_blocks", TORCH_BOX(&copy_blocks));
}

REGISTER_EXTENSION(TORCH_EXTENSION_NAME)
