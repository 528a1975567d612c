// What this machine's cores can do at most: reading memory, copying it, and multiplying and adding in registers.
#include <omp.h>

#include <cstdint>
#include <cstring>

typedef float f32x8 __attribute__((vector_size(32)));

namespace {

f32x8 load(const float* from) {
  f32x8 lanes;
  std::memcpy(&lanes, from, sizeof(lanes));
  return lanes;
}

float total(const f32x8* lanes, int count) {
  float sum = 0;
  for (int i = 0; i < count; ++i) {
    for (int l = 0; l < 8; ++l) sum += lanes[i][l];
  }
  return sum;
}

}  // namespace

// Reads `count` floats, an equal share in each thread. Returns their sum, so that reading them is needed.
extern "C" float read_floats(const float* from, int64_t count, int threads) {
  float sum = 0;
#pragma omp parallel num_threads(threads) reduction(+ : sum)
  {
    const int64_t share = count / threads / 64 * 64;
    const float* at = from + omp_get_thread_num() * share;
    f32x8 lanes[8] = {};
    for (int64_t i = 0; i < share; i += 64) {
      for (int v = 0; v < 8; ++v) lanes[v] += load(at + i + 8 * v);
    }
    sum += total(lanes, 8);
  }
  return sum;
}

extern "C" void copy_floats(float* to, const float* from, int64_t count, int threads) {
#pragma omp parallel num_threads(threads)
  {
    const int64_t share = count / threads / 64 * 64, start = omp_get_thread_num() * share;
    for (int64_t i = start; i < start + share; i += 8) std::memcpy(to + i, from + i, 32);
  }
}

// 2 * 8 * 12 * `turns` floating point operations in each thread: 12 chains cover a latency of 6 cycles at two a cycle.
// No barrier in the loop, which would send the chains through memory; they start apart, so that none is another's copy.
extern "C" float multiply_add(int64_t turns, int threads) {
  float sum = 0;
#pragma omp parallel num_threads(threads) reduction(+ : sum)
  {
    f32x8 lanes[12], x = f32x8{} + 0.999f, y = f32x8{} + 0.001f;
    for (int v = 0; v < 12; ++v) lanes[v] = f32x8{} + float(v + 2);  // not 1, which stays 1
    for (int64_t i = 0; i < turns; ++i) {
      for (int v = 0; v < 12; ++v) lanes[v] = lanes[v] * x + y;
    }
    sum += total(lanes, 12);
  }
  return sum;
}
