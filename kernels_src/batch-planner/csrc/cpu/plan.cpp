#include "plan.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

namespace batch_planner {
namespace {

void refuse(size_t sequence, const std::string& what) {
  throw std::invalid_argument("plan_step: sequence " + std::to_string(sequence) + " " + what);
}

}  // namespace

Share share_budget(const std::vector<int64_t>& seq_lens, const std::vector<int64_t>& query_lens,
                   int64_t block_size, int64_t token_budget) {
  if (query_lens.size() != seq_lens.size()) {
    throw std::invalid_argument("plan_step: " + std::to_string(seq_lens.size()) + " seq_lens and " +
                                std::to_string(query_lens.size()) + " query_lens: give one of each per sequence");
  }
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  if (block_size < 1 || block_size > kMost) {
    throw std::invalid_argument("plan_step: block_size is " + std::to_string(block_size) +
                                ": expected 1 <= block_size < 2^31");
  }
  if (token_budget < 0) {
    throw std::invalid_argument("plan_step: token_budget is " + std::to_string(token_budget) +
                                ", expected at least 0");
  }
  Share share;
  share.chunks.reserve(seq_lens.size());
  for (size_t i = 0; i < seq_lens.size(); ++i) {
    const int64_t length = seq_lens[i];
    const int64_t wanted = query_lens[i];
    if (wanted < 0 || wanted > length || length > kMost) {
      refuse(i, "wants " + std::to_string(wanted) + " of its " + std::to_string(length) +
                    " tokens computed: expected 0 <= query_len <= seq_len < 2^31");
    }
    const int64_t granted = std::min(wanted, token_budget - share.tokens);
    const int64_t start = length - wanted;
    const int64_t end = start + granted;
    const int64_t blocks = end / block_size + (end % block_size != 0);
    share.chunks.push_back({start, end, length, blocks});
    share.tokens += granted;
    share.widest = std::max(share.widest, blocks);
  }
  if (share.tokens > kMost) throw std::invalid_argument("plan_step: a step holds fewer than 2^31 tokens");
  return share;
}

void place(const Chunk& chunk, const int32_t* blocks, int64_t block_size, int64_t* positions, int64_t* slots) {
  for (int64_t first = chunk.start; first < chunk.end;) {
    const int64_t block = first / block_size;
    const int64_t last = std::min(chunk.end, (block + 1) * block_size);
    const int64_t shift = (blocks[block] - block) * block_size;
    for (int64_t position = first; position < last; ++position) {
      *positions++ = position;
      *slots++ = position + shift;
    }
    first = last;
  }
}

}  // namespace batch_planner
