// Runs CUDA source on the host, for tests where there is no GPU. Put this folder first on the include path
// and compile a .cu file as C++.
//
// The threads of a block are fibers that switch only at barriers and shuffles; the blocks of a grid run one
// after the other. What is emulated is what the kernels of this tree use: a one-to-three-dimensional launch
// through cudaLaunchKernelEx, static __shared__ memory, __syncthreads, __syncwarp, full-mask warp shuffles and
// votes, and, in emulated_ptx.h, tensor cores and asynchronous copies. A barrier that some threads never reach fails
// the launch instead of hanging.
// CUDA_EMULATOR_ORDER=reverse runs the threads last to first: a kernel that lacks a barrier then gives
// another result.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __shared__ static thread_local

using std::max;
using std::min;

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

struct alignas(8) uint2 {
  unsigned x, y;
};

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9, cudaErrorLaunchFailure = 719 };

inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorLaunchFailure: return "a barrier was not reached by all threads";
  }
  return "unrecognized error";
}

inline float __fmul_rn(float a, float b) {
  volatile float product = a * b;  // which nothing is fused with
  return product;
}

// Byte i of the result is byte (selector >> 4 i) & 7 of the eight in x and, above them, y.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = uint64_t(y) << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) result |= unsigned(bytes >> ((selector >> (4 * i) & 7) * 8) & 255) << (8 * i);
  return result;
}

using cudaStream_t = struct CUstream_st*;

struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  void* attrs;
  unsigned numAttrs;
};

inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_emulator {

constexpr int kWarpSize = 32;
constexpr size_t kStackBytes = 128 << 10;
constexpr size_t kPostBytes = 64;

struct Barrier {
  int size = 0;
  int arrived = 0;
  unsigned generation = 0;
};

struct Warp {
  Barrier barrier;
  // By parity of the generation: one exchange may start while another is read.
  alignas(16) char posts[2][kWarpSize][kPostBytes] = {};
};

// A copy that was asked for and need not have happened yet.
struct Copy {
  void* to;
  const void* from;  // null: zeros
  size_t bytes;
};

struct Thread {
  ucontext_t context;
  std::vector<std::vector<Copy>> copies;  // by group, the last one open
  std::unique_ptr<char[]> stack;
  dim3 index;
  int rank = 0;
  const Barrier* waiting = nullptr;
  unsigned generation = 0;
  bool done = false;

  bool runnable() const { return !done && (!waiting || waiting->generation != generation); }
};

struct Block {
  ucontext_t scheduler;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Barrier barrier;
  std::function<void()> body;
  Thread* current = nullptr;
};

inline thread_local Block* block = nullptr;

inline void wait(Barrier& barrier) {
  Thread* self = block->current;
  if (++barrier.arrived == barrier.size) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  self->waiting = &barrier;
  self->generation = barrier.generation;
  swapcontext(&self->context, &block->scheduler);
  self->waiting = nullptr;
}

// What every lane of the warp posted: lane i's is at(i).
template <class T>
struct Posts {
  const char (*posts)[kPostBytes];

  T at(int lane) const {
    T value;
    std::memcpy(&value, posts[lane], sizeof(T));
    return value;
  }
};

template <class T>
Posts<T> post(const T& value) {
  static_assert(sizeof(T) <= kPostBytes, "a lane posts at most 64 bytes");
  Warp& warp = block->warps[block->current->rank / kWarpSize];
  auto& posts = warp.posts[warp.barrier.generation % 2];
  std::memcpy(posts[block->current->rank % kWarpSize], &value, sizeof(T));
  wait(warp.barrier);
  return {posts};
}

inline int lane() { return block->current->rank % kWarpSize; }

inline void enter_thread() {
  block->body();
  block->current->done = true;
  swapcontext(&block->current->context, &block->scheduler);
}

// False when threads are left that wait for a barrier that no other thread will reach.
inline bool run_block(Block& b, bool reverse) {
  const int count = int(b.threads.size());
  b.barrier = {};
  b.barrier.size = count;
  for (size_t w = 0; w < b.warps.size(); ++w) {
    b.warps[w] = {};
    b.warps[w].barrier.size = std::min(kWarpSize, count - int(w) * kWarpSize);
  }
  for (int i = 0; i < count; ++i) {
    Thread& thread = b.threads[i];
    thread.rank = i;
    thread.index = dim3(i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y));
    thread.waiting = nullptr;
    thread.done = false;
    thread.copies.assign(1, {});
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.get();
    thread.context.uc_stack.ss_size = kStackBytes;
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, enter_thread, 0);
  }
  for (;;) {
    bool progress = false, all_done = true;
    for (int i = 0; i < count; ++i) {
      Thread& thread = b.threads[reverse ? count - 1 - i : i];
      if (thread.runnable()) {
        b.current = &thread;
        threadIdx = thread.index;
        swapcontext(&b.scheduler, &thread.context);
        progress = true;
      }
      all_done = all_done && thread.done;
    }
    if (all_done) return true;
    if (!progress) return false;
  }
}

}  // namespace cuda_emulator

inline void __syncthreads() { cuda_emulator::wait(cuda_emulator::block->barrier); }

inline void __syncwarp(unsigned = 0xffffffffu) {
  cuda_emulator::Block* b = cuda_emulator::block;
  cuda_emulator::wait(b->warps[b->current->rank / cuda_emulator::kWarpSize].barrier);
}

template <class T>
T __shfl_sync(unsigned, T value, int source) {
  return cuda_emulator::post(value).at(source % cuda_emulator::kWarpSize);
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return cuda_emulator::post(value).at(cuda_emulator::lane() ^ mask);
}

template <class T>
T __shfl_down_sync(unsigned, T value, unsigned delta) {
  const int source = cuda_emulator::lane() + int(delta);
  return cuda_emulator::post(value).at(source < cuda_emulator::kWarpSize ? source : cuda_emulator::lane());
}

inline unsigned __ballot_sync(unsigned, int predicate) {
  const auto posts = cuda_emulator::post(predicate);
  unsigned votes = 0;
  for (int i = 0; i < cuda_emulator::kWarpSize; ++i) votes |= unsigned(posts.at(i) != 0) << i;
  return votes;
}

inline int __any_sync(unsigned, int predicate) {
  const auto posts = cuda_emulator::post(predicate);
  bool any = false;
  for (int i = 0; i < cuda_emulator::kWarpSize; ++i) any = any || posts.at(i);
  return any;
}

template <class... Params, class... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...), Args&&... args) {
  const dim3 grid = config->gridDim;
  const uint64_t count = uint64_t(config->blockDim.x) * config->blockDim.y * config->blockDim.z;
  if (count == 0 || count > 1024 || grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 ||
      grid.z > 65535) {
    return cudaErrorInvalidConfiguration;
  }
  cuda_emulator::Block block;
  gridDim = grid;
  blockDim = config->blockDim;
  block.threads.resize(count);
  block.warps.resize((count + cuda_emulator::kWarpSize - 1) / cuda_emulator::kWarpSize);
  for (cuda_emulator::Thread& thread : block.threads)
    thread.stack.reset(new char[cuda_emulator::kStackBytes]);
  block.body = [&] { kernel(Params(args)...); };
  const char* order = std::getenv("CUDA_EMULATOR_ORDER");
  const bool reverse = order && std::strcmp(order, "reverse") == 0;
  cuda_emulator::block = &block;
  bool complete = true;
  for (unsigned z = 0; z < grid.z && complete; ++z) {
    for (unsigned y = 0; y < grid.y && complete; ++y) {
      for (unsigned x = 0; x < grid.x && complete; ++x) {
        blockIdx = dim3(x, y, z);
        complete = cuda_emulator::run_block(block, reverse);
      }
    }
  }
  cuda_emulator::block = nullptr;
  return complete ? cudaSuccess : cudaErrorLaunchFailure;
}
