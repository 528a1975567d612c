// Two partial attentions of the same rows, over different keys, joined (Dao et al., FlashAttention, 2022).
#include "../finish.h"
#include "attention_cpu.h"

namespace khub::cpu {

namespace {

template <class T>
void merge_tokens(const Merge& m, int64_t begin, int64_t end) {
  for (int64_t token = begin; token < end; ++token) {
    for (int64_t head = 0; head < m.num_heads; ++head) {
      const int64_t row = token * m.num_heads + head;
      const auto at = [&](const Merge::Part& part) {
        return static_cast<const T*>(part.out) + token * part.token_stride + head * part.head_stride;
      };
      const T *a = at(m.parts[0]), *b = at(m.parts[1]);
      T* out = static_cast<T*>(m.out) + token * m.out_token_stride + head * m.out_head_stride;
      const MergeWeights weights = merge_weights(m.parts[0].lse[row], m.parts[1].lse[row]);
      const float first = weights.first, second = weights.second;
      m.out_lse[row] = weights.lse;
      // A part that saw no key says nothing: what is in its output, a NaN perhaps, is not looked at.
      for (int64_t d = 0; d < m.head_size; ++d) {
        from_float((first == 0.0f ? 0.0f : first * to_float(a[d])) + (second == 0.0f ? 0.0f : second * to_float(b[d])),
                   out + d);
      }
    }
  }
}

}  // namespace

void merge_states(const Merge& m, int64_t begin_token, int64_t end_token) {
  switch (m.dtype) {
    case DType::f32: return merge_tokens<float>(m, begin_token, end_token);
    case DType::f16: return merge_tokens<Half>(m, begin_token, end_token);
    case DType::bf16: return merge_tokens<BFloat16>(m, begin_token, end_token);
  }
}

}  // namespace khub::cpu
