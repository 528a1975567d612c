// What compute capability 9.0 has of its own, as functions: barriers that copies of tiles land on (mbarrier, TMA), and
// products of a warpgroup whose operands lie in shared memory (wgmma). Layouts are those of the PTX manual.
//
// A copy happens as late as the hardware may do it, when its barrier has been waited for; in reverse order as early, when
// it is asked for. A product happens when it is waited for. So a kernel that reads too early or overwrites too early
// computes something else in one of the two orders.
#pragma once

#include "cuda_fp8.h"
#include "emulated_ptx.h"

namespace cuda_emulator {

constexpr int kTileBytes = 128;  // of a tile's row

struct TileMap {
  const uint8_t* data;
  int64_t rows, bytes, stride;
  int tile_rows;
};

inline const char* make_tile_map(const void* data, int64_t rows, int64_t bytes, int64_t stride, int tile_rows,
                                 TileMap* to) {
  if ((reinterpret_cast<uintptr_t>(data) | uintptr_t(stride)) % 16) return "a matrix of tiles that is not on 16 bytes";
  if (rows <= 0 || bytes <= 0 || tile_rows <= 0 || tile_rows > 256) return "sizes that no tensor map has";
  *to = {static_cast<const uint8_t*>(data), rows, bytes, stride, tile_rows};
  return nullptr;
}

inline uint8_t* dynamic_shared() { return reinterpret_cast<uint8_t*>(block->shared.data()); }

template <class... Params>
cudaError_t allow_shared(void (*kernel)(Params...), int bytes) {
  if (bytes < 0 || size_t(bytes) > kMostSharedBytes) return cudaErrorInvalidValue;
  shared_limits()[reinterpret_cast<void*>(kernel)] = size_t(bytes);
  return cudaSuccess;
}

struct Landing {
  uint64_t state;

  void init(int arrivals) {
    phases() = {};
    phases().arrivals = phases().missing = arrivals;
  }

  void arrive() {
    --phases().missing;
    end_if_complete();
  }

  void expect(int bytes) {
    phases().bytes += bytes;
    arrive();
  }

  void landed(int bytes) {
    phases().bytes -= bytes;
    end_if_complete();
  }

  void wait(uint32_t parity) {
    wait_until([this, parity] { return (phases().ended & 1) != parity; });
    run_copies(phases().copies);
  }

  Phases& phases() { return block->phases[this]; }

 private:
  void end_if_complete() {
    Phases& now = phases();
    if (now.missing != 0 || now.bytes != 0) return;
    ++now.ended;
    now.missing = now.arrivals;
  }
};

inline void publish_landings() {}

// The 16-byte pieces of a row change places by the lowest three bits of the row.
inline uint8_t* swizzled(const uint8_t* at) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(at);
  return reinterpret_cast<uint8_t*>(address ^ ((address >> 7 & 7) << 4));
}

inline void copy_tile(void* shared, const TileMap& from, int byte, int row, Landing& landing) {
  std::vector<Copy>& copies = landing.phases().copies;
  for (int r = 0; r < from.tile_rows; ++r) {
    for (int piece = 0; piece < kTileBytes; piece += 16) {
      const int64_t at = int64_t(byte) + piece, left = from.bytes - at;
      uint8_t* const to = swizzled(static_cast<uint8_t*>(shared) + r * kTileBytes + piece);
      const size_t valid = row + r < from.rows && left > 0 ? size_t(std::min<int64_t>(left, 16)) : 0;
      if (valid) copies.push_back({to, from.data + (row + r) * from.stride + at, valid});
      if (valid < 16) copies.push_back({to + valid, nullptr, 16 - valid});
    }
  }
  if (in_reverse()) run_copies(copies);
  landing.landed(from.tile_rows * kTileBytes);
}

template <int kRegisters>
void give_registers() {}

template <int kRegisters>
void take_registers() {}

// An operand is where its first row's part begins.
inline const uint8_t* operand(const uint8_t* from) { return from; }

inline void begin_products() { __syncwarp(); }

template <class Sum>
void finish_products(Sum (&)[64]) {
  std::vector<std::function<void()>> products = std::move(block->current->products);
  block->current->products.clear();
  for (const auto& product : products) product();
  __syncwarp();  // all lanes of a warp are done when one is
}

// 32 bytes of row `row` of an operand, of which eight lie every 1024 bytes, as numbers.
template <class T, class Value>
void read_row(const uint8_t* from, int row, Value (&to)[32]) {
  const uint8_t* at = from + row / 8 * 1024 + row % 8 * kTileBytes;
  for (int piece = 0; piece < 32; piece += 16) {
    const uint8_t* const bytes = swizzled(at + piece);
    for (int i = 0; i < 16; ++i) to[piece + i] = number(bytes[i], static_cast<T*>(nullptr));
  }
}

// d = a b^T, and d where `add`, for a [64, 32] and b [128, 32] of bytes.
template <class T, class Sum>
void multiply_tile(Sum (&d)[64], const uint8_t* a, const uint8_t* b, bool add, T*) {
  const int thread = block->current->rank % 128, warp = thread / 32, g = thread % 32 / 4, t = thread % 4;
  Sum* const sums = d;
  block->current->products.push_back([=] {
    Sum rows[2][32], columns[2][32];
    for (int i = 0; i < 2; ++i) read_row<T>(a, 16 * warp + g + 8 * i, rows[i]);
    for (int j = 0; j < 16; ++j) {
      for (int i = 0; i < 2; ++i) read_row<T>(b, 8 * j + 2 * t + i, columns[i]);
      Sum four[4] = {};
      if (add) std::memcpy(four, sums + 4 * j, sizeof(four));
      for (int k = 0; k < 32; ++k) {
        for (int i = 0; i < 4; ++i) four[i] += rows[i / 2][k] * columns[i % 2][k];
      }
      std::memcpy(sums + 4 * j, four, sizeof(four));
    }
  });
}

}  // namespace cuda_emulator
