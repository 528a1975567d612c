// What compute capability 9.0 has of its own, as functions: barriers that copies of tiles land on (mbarrier, TMA), and
// products of a warpgroup whose operands lie in shared memory (wgmma). Layouts are those of the PTX manual.
//
// A copy happens as late as the hardware may do it, when its barrier has been waited for; in reverse order as early, when
// it is asked for. A product happens when it is waited for. So a kernel that reads too early or overwrites too early
// computes something else in one of the two orders.
#pragma once

#include <array>

#include "cuda_fp8.h"
#include "emulated_ptx.h"

namespace cuda_emulator {

constexpr int kTileBytes = 128;  // of a tile's row

struct TileMap {
  const void* data;
  int rank;
  int64_t sizes[4], strides[4];
  int tile[4];
};

template <class Tiling>
const char* make_tile_map(const Tiling& tiling, TileMap* to) {
  uintptr_t places = reinterpret_cast<uintptr_t>(tiling.data);
  bool fits = tiling.rank >= 2 && tiling.rank <= 4 && tiling.tile[0] == kTileBytes && tiling.strides[0] == 1;
  for (int i = 0; i < tiling.rank && fits; ++i) {
    if (i > 0) places |= uintptr_t(tiling.strides[i]);
    fits = tiling.sizes[i] > 0 && tiling.sizes[i] <= int64_t(1) << 32 && tiling.tile[i] > 0 && tiling.tile[i] <= 256 &&
           tiling.strides[i] > 0 && tiling.strides[i] < int64_t(1) << 40;
  }
  if (places % 16) return "a matrix of tiles that is not on 16 bytes";
  if (!fits) return "sizes that no tensor map has";
  *to = {tiling.data, tiling.rank, {}, {}, {}};
  for (int i = 0; i < tiling.rank; ++i) {
    to->sizes[i] = tiling.sizes[i];
    to->strides[i] = tiling.strides[i];
    to->tile[i] = tiling.tile[i];
  }
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

// The tile's first place in each dimension; whole rows of it, and parts of them, that lie outside become zeros.
inline void copy_tile_at(void* shared, const TileMap& from, const int (&first)[4], Landing& landing) {
  std::vector<Copy>& copies = landing.phases().copies;
  int rows = 1;
  for (int i = 1; i < from.rank; ++i) rows *= from.tile[i];
  for (int r = 0; r < rows; ++r) {
    const uint8_t* data = static_cast<const uint8_t*>(from.data);
    bool inside = true;
    for (int i = 1, left = r; i < from.rank; left /= from.tile[i], ++i) {
      const int64_t at = int64_t(first[i]) + left % from.tile[i];
      inside = inside && at >= 0 && at < from.sizes[i];
      data += at * from.strides[i];
    }
    for (int piece = 0; piece < kTileBytes; piece += 16) {
      const int64_t at = int64_t(first[0]) + piece, left = from.sizes[0] - at;
      uint8_t* const to = swizzled(static_cast<uint8_t*>(shared) + r * kTileBytes + piece);
      const size_t valid = inside && left > 0 ? size_t(std::min<int64_t>(left, 16)) : 0;
      if (valid) copies.push_back({to, data + at, valid});
      if (valid < 16) copies.push_back({to + valid, nullptr, 16 - valid});
    }
  }
  if (in_reverse()) run_copies(copies);
  landing.landed(rows * kTileBytes);
}

inline void copy_tile(void* shared, const TileMap& from, int byte, int row, Landing& landing) {
  copy_tile_at(shared, from, {byte, row, 0, 0}, landing);
}

inline void copy_tile(void* shared, const TileMap& from, int byte, int second, int third, int fourth, Landing& landing) {
  copy_tile_at(shared, from, {byte, second, third, fourth}, landing);
}

inline void publish_shared() {}

template <int kRegisters>
void give_registers() {}

template <int kRegisters>
void take_registers() {}

// An operand is where its first row's part begins.
inline const uint8_t* operand(const uint8_t* from) { return from; }

struct Across {
  const uint8_t* from;
  int beside;
};

inline Across operand_across(const uint8_t* from, int beside) { return {from, beside}; }

inline void begin_products() { __syncwarp(); }

template <class Sums>
void finish_products(Sums&) {
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

// Row k, of 16, and column n of an operand of 16-bit elements: of rows that are the columns, or of such as are summed over.
inline const uint8_t* element_at(const uint8_t* from, int k, int n) {
  return from + n / 8 * 1024 + n % 8 * kTileBytes + 2 * k;
}

inline const uint8_t* element_at(Across b, int k, int n) {
  return b.from + n / 64 * b.beside + k / 8 * 1024 + k % 8 * kTileBytes + n % 64 * 2;
}

// d = a b, and d where `add`, for a [64, 16] in the lanes' registers, which are read when the product happens.
template <class T, int kEights, class Operand>
void multiply_rows(float (&d)[kEights][4], const uint32_t (&a)[4], Operand b, bool add, T* type) {
  const int thread = block->current->rank % 128, g = thread % 32 / 4, t = thread % 4;
  const auto posts = post(&a[0]);
  const uint32_t* words[4];
  for (int i = 0; i < 4; ++i) words[i] = posts.at(4 * g + i);
  const std::array<const uint32_t*, 4> lanes = {words[0], words[1], words[2], words[3]};
  float(*const sums)[4] = d;
  block->current->products.push_back([=] {
    float rows[2][16];
    for (int i = 0; i < 2; ++i) {
      for (int k = 0; k < 16; ++k) rows[i][k] = element(lanes[k % 8 / 2][i + k / 8 * 2], k % 2, type);
    }
    for (int j = 0; j < kEights; ++j) {
      float four[4] = {};
      if (add) std::memcpy(four, sums[j], sizeof(four));
      for (int k = 0; k < 16; ++k) {
        for (int c = 0; c < 2; ++c) {
          uint16_t bits;
          std::memcpy(&bits, swizzled(element_at(b, k, 8 * j + 2 * t + c)), sizeof(bits));
          const float column = element(bits, 0, type);
          four[c] += rows[0][k] * column;
          four[2 + c] += rows[1][k] * column;
        }
      }
      std::memcpy(sums[j], four, sizeof(four));
    }
  });
}

}  // namespace cuda_emulator
