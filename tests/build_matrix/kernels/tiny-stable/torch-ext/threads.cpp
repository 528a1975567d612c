#include <torch/csrc/stable/ops.h>

#include <atomic>

// How many of `count` indices torch's threads visited.
int64_t visited(int64_t count) {
  std::atomic<int64_t> seen{0};
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) { seen += end - begin; });
  return torch::stable::get_num_threads() > 0 ? seen.load() : -1;
}
