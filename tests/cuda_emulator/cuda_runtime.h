// Runs CUDA source on the host, for tests where there is no GPU. Put this folder first on the include path
// and compile a .cu file as C++.
//
// The threads of a block are fibers that switch only at barriers and shuffles; the blocks of a grid run one
// after the other. What is emulated is what the kernels of this tree use: a one-to-three-dimensional launch
// through cudaLaunchKernelEx, shared memory, __syncthreads, __syncwarp, full-mask warp shuffles and votes, in
// emulated_ptx.h tensor cores and asynchronous copies, and in emulated_hopper.h what compute capability 9.0 has of its
// own. A barrier that some threads never reach fails the launch instead of hanging.
// CUDA_EMULATOR_ORDER=reverse runs the threads last to first: a kernel that lacks a barrier then gives
// another result. CUDA_EMULATOR_CAPABILITY=9.0 is what the device says it is, 8.0 without it.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __grid_constant__
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

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719,
};

inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
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

inline int __popc(unsigned x) { return __builtin_popcount(x); }

using cudaStream_t = struct CUstream_st*;

enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor,
};

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

// Few multiprocessors, so that blocks which stay have several tiles each.
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr name, int) {
  const char* given = std::getenv("CUDA_EMULATOR_CAPABILITY");
  int major = 8, minor = 0;
  if (given && std::sscanf(given, "%d.%d", &major, &minor) != 2) return cudaErrorInvalidValue;
  *value = name == cudaDevAttrMultiProcessorCount ? 3 : name == cudaDevAttrComputeCapabilityMajor ? major : minor;
  return cudaSuccess;
}

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
constexpr size_t kSharedBytes = 48 << 10;      // without asking
constexpr size_t kMostSharedBytes = 227 << 10;  // of compute capability 9.0

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
  std::vector<std::function<void()>> products;  // asked for, not yet waited for
  std::function<bool()> until;                  // what it waits for, where that is no barrier of many
  std::unique_ptr<char[]> stack;
  dim3 index;
  int rank = 0;
  const Barrier* waiting = nullptr;
  unsigned generation = 0;
  bool done = false, entered = false;
  void* place[5];  // where it waits

  bool runnable() const { return !done && (!waiting || waiting->generation != generation) && (!until || until()); }
};

// A barrier that copies land on (mbarrier): a phase of it ends with so many arrivals and all bytes announced.
struct Phases {
  int arrivals = 0, missing = 0;
  int64_t bytes = 0;  // announced and not yet landed
  uint32_t ended = 0;  // phases
  std::vector<Copy> copies;
};

struct Block {
  ucontext_t scheduler;
  void* scheduler_place[5];
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Barrier barrier;
  std::vector<char> shared;  // dynamic; its size is the launch's
  std::map<const void*, Phases> phases;
  std::function<void()> body;
  Thread* current = nullptr;
};

inline thread_local Block* block = nullptr;

// swapcontext asks the kernel for the signal mask every time, which takes longer than what is emulated between two
// barriers. Only a thread's first entry needs it; after that stacks are changed by the compiler's own jumps. Not where
// the address sanitizer has to follow.
#if defined(__SANITIZE_ADDRESS__)

inline void yield() { swapcontext(&block->current->context, &block->scheduler); }
inline void resume(Thread& thread) { swapcontext(&block->scheduler, &thread.context); }

#else

__attribute__((noinline, noreturn)) inline void jump(void** to) { __builtin_longjmp(to, 1); }

__attribute__((noinline)) inline void yield() {
  if (__builtin_setjmp(block->current->place) == 0) jump(block->scheduler_place);
}

__attribute__((noinline)) inline void resume(Thread& thread) {
  if (__builtin_setjmp(block->scheduler_place) != 0) return;
  if (thread.entered) jump(thread.place);
  thread.entered = true;
  setcontext(&thread.context);
}

#endif

inline void wait(Barrier& barrier) {
  Thread* self = block->current;
  if (++barrier.arrived == barrier.size) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  self->waiting = &barrier;
  self->generation = barrier.generation;
  yield();
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

// Lets others run until `condition` holds.
inline void wait_until(const std::function<bool()>& condition) {
  Thread* self = block->current;
  if (condition()) return;
  self->until = condition;
  yield();
  self->until = nullptr;
}

inline bool in_reverse() {
  const char* order = std::getenv("CUDA_EMULATOR_ORDER");
  return order && std::strcmp(order, "reverse") == 0;
}

// What cudaFuncSetAttribute raised, by kernel.
inline std::map<void*, size_t>& shared_limits() {
  static thread_local std::map<void*, size_t> limits;
  return limits;
}

inline int lane() { return block->current->rank % kWarpSize; }

inline void enter_thread() {
  block->body();
  block->current->done = true;
  yield();
}

// False when threads are left that wait for a barrier that no other thread will reach.
inline bool run_block(Block& b, bool reverse) {
  const int count = int(b.threads.size());
  b.barrier = {};
  b.barrier.size = count;
  std::fill(b.shared.begin(), b.shared.end(), char(0x7f));  // NaN as most types
  b.phases.clear();
  for (size_t w = 0; w < b.warps.size(); ++w) {
    b.warps[w] = {};
    b.warps[w].barrier.size = std::min(kWarpSize, count - int(w) * kWarpSize);
  }
  for (int i = 0; i < count; ++i) {
    Thread& thread = b.threads[i];
    thread.rank = i;
    thread.index = dim3(i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y));
    thread.waiting = nullptr;
    thread.done = thread.entered = false;
    thread.copies.assign(1, {});
    thread.products.clear();
    thread.until = nullptr;
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
        resume(thread);
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

// Blocks run one after the other.
inline unsigned atomicAdd(unsigned* at, unsigned value) {
  const unsigned before = *at;
  *at += value;
  return before;
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
  const auto raised = cuda_emulator::shared_limits().find(reinterpret_cast<void*>(kernel));
  const size_t limit = raised == cuda_emulator::shared_limits().end() ? cuda_emulator::kSharedBytes : raised->second;
  if (config->dynamicSmemBytes > limit) return cudaErrorInvalidValue;
  cuda_emulator::Block block;
  block.shared.resize(config->dynamicSmemBytes);
  gridDim = grid;
  blockDim = config->blockDim;
  block.threads.resize(count);
  block.warps.resize((count + cuda_emulator::kWarpSize - 1) / cuda_emulator::kWarpSize);
  for (cuda_emulator::Thread& thread : block.threads)
    thread.stack.reset(new char[cuda_emulator::kStackBytes]);
  block.body = [&] { kernel(Params(args)...); };
  const bool reverse = cuda_emulator::in_reverse();
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
