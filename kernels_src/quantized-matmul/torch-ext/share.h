// Work shared among torch's threads. A copy of this file is in every package that shares so, that each builds alone.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

namespace khub {

// What is left of a thread's part; on a line of its own, for others look at it too.
struct alignas(64) Part {
  std::atomic<int64_t> next;
  int64_t end;
};

// Calls what start() gives each thread with (begin, end), pieces of [0, count) that start at multiples of `grain`. A thread
// goes through a part of its own in order, so that what it reads is one stream, and then helps with the others': a core
// that somebody else is using too does less.
template <class Start>
void share_with(int64_t count, int64_t grain, const Start& start) {
  const int64_t turns = (count + grain - 1) / grain;
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), turns);
  std::vector<Part> parts(static_cast<size_t>(threads));
  for (int64_t t = 0; t < threads; ++t) {
    parts[t].next = turns * t / threads * grain;
    parts[t].end = std::min(turns * (t + 1) / threads * grain, count);
  }
  torch::stable::parallel_for(0, threads, 1, [&](int64_t own, int64_t) {
    const auto work = start();
    for (int64_t turn = 0; turn < threads; ++turn) {
      Part& part = parts[(own + turn) % threads];
      for (int64_t begin = part.next.fetch_add(grain); begin < part.end; begin = part.next.fetch_add(grain)) {
        work(begin, std::min(begin + grain, part.end));
      }
    }
  });
}

template <class Work>
void share(int64_t count, int64_t grain, const Work& work) {
  share_with(count, grain, [&] { return work; });
}

}  // namespace khub
