// The instructions for integer products of AMX-INT8 and AVX-512 VNNI that kernels use, as functions for AVX2, so that
// loops made of them run on processors that lack them. Included after <immintrin.h>. Source: Intel's Architecture
// Instruction Set Extensions Programming Reference, "Intel AMX Instruction Set Reference" and TILECFG's layout.
//
// What a processor answers with a fault ends the process with a word of why. So does a second configuration before the
// first is released, which a processor allows: who does so would leave tiles to others on the thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace amx_emulator {

constexpr int kTiles = 8, kMostRows = 16, kMostBytes = 64;

struct Tile {
  int rows, row_bytes;
  uint8_t data[kMostRows][kMostBytes];
};

struct Tiles {
  bool configured;
  Tile tiles[kTiles];
};

inline thread_local Tiles thread_tiles;

// Products so far, on all threads: a test sees by them which loops were run.
inline std::atomic<int64_t> tile_products, vector_products;

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "AMX emulator: %s\n", what);
  std::abort();
}

inline void load_config(const void* from) {
  struct Config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  } config;
  static_assert(sizeof(config) == 64, "as the processor reads it");
  std::memcpy(&config, from, sizeof(config));
  if (thread_tiles.configured) fail("tiles are configured again, the first configuration was not released");
  if (config.palette != 1 || config.start_row != 0) fail("a configuration of another palette than 1, or that goes on");
  for (const uint8_t byte : config.reserved) {
    if (byte) fail("a configuration whose reserved bytes are not 0");
  }
  Tiles tiles = {};
  for (int i = 0; i < 16; ++i) {
    const int rows = config.rows[i], row_bytes = config.row_bytes[i];
    if (rows > kMostRows) fail("a tile of more than 16 rows");
    if (row_bytes > kMostBytes) fail("a tile whose rows have more than 64 bytes");
    if ((rows == 0) != (row_bytes == 0)) fail("a tile of rows without bytes, or bytes without rows");
    if (i >= kTiles && rows) fail("a configuration of more than 8 tiles");
    if (i < kTiles) tiles.tiles[i].rows = rows, tiles.tiles[i].row_bytes = row_bytes;
  }
  tiles.configured = true;
  thread_tiles = tiles;
}

inline void release() { thread_tiles = {}; }

inline Tile& tile_at(int i) {
  if (!thread_tiles.configured) fail("a tile is used before tiles are configured on this thread");
  if (i < 0 || i >= kTiles || !thread_tiles.tiles[i].rows) fail("a tile is used that the configuration does not have");
  return thread_tiles.tiles[i];
}

inline void zero(int i) { std::memset(tile_at(i).data, 0, sizeof(Tile::data)); }

inline void load(int i, const void* from, int64_t stride) {
  zero(i);
  Tile& tile = tile_at(i);
  for (int row = 0; row < tile.rows; ++row) {
    std::memcpy(tile.data[row], static_cast<const uint8_t*>(from) + row * stride, size_t(tile.row_bytes));
  }
}

inline void store(int i, void* to, int64_t stride) {
  const Tile& tile = tile_at(i);
  for (int row = 0; row < tile.rows; ++row) {
    std::memcpy(static_cast<uint8_t*>(to) + row * stride, tile.data[row], size_t(tile.row_bytes));
  }
}

// sums[row][column] += the four bytes of each 32 bits of a[row] times those of b's column.
template <class A, class B>
void multiply(int sums, int a, int b) {
  Tile &c = tile_at(sums), &left = tile_at(a), &right = tile_at(b);
  if (sums == a || sums == b || a == b) fail("a product with fewer than three tiles");
  if (c.rows != left.rows || c.row_bytes != right.row_bytes || left.row_bytes != 4 * right.rows ||
      c.row_bytes % 4 != 0) {
    fail("a product of tiles whose sizes do not fit");
  }
  ++tile_products;
  for (int row = 0; row < c.rows; ++row) {
    for (int column = 0; column < c.row_bytes / 4; ++column) {
      uint32_t sum;
      std::memcpy(&sum, c.data[row] + 4 * column, sizeof(sum));
      for (int k = 0; k < left.row_bytes; ++k) {
        sum += uint32_t(int32_t(A(left.data[row][k])) * int32_t(B(right.data[k / 4][4 * column + k % 4])));
      }
      std::memcpy(c.data[row] + 4 * column, &sum, sizeof(sum));
    }
  }
}

#pragma GCC push_options
#pragma GCC target("avx2")

inline __m256i add_products_of_words(__m256i sums, __m256i a, __m256i b) {
  ++vector_products;
  return _mm256_add_epi32(sums, _mm256_madd_epi16(a, b));
}

inline __m256i add_products_of_bytes(__m256i sums, __m256i a, __m256i b) {
  ++vector_products;
  const __m256i even = _mm256_madd_epi16(_mm256_and_si256(a, _mm256_set1_epi16(255)),
                                         _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8));
  const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(a, 8), _mm256_srai_epi16(b, 8));
  return _mm256_add_epi32(sums, _mm256_add_epi32(even, odd));
}

#pragma GCC pop_options

}  // namespace amx_emulator

extern "C" {
__attribute__((visibility("default"), used)) inline int64_t emulated_tile_products() {
  return amx_emulator::tile_products;
}
__attribute__((visibility("default"), used)) inline int64_t emulated_vector_products() {
  return amx_emulator::vector_products;
}
}

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbssd
#undef _tile_dpbusd
#undef _mm256_dpwssd_epi32
#undef _mm256_dpbusd_epi32
#define _tile_loadconfig amx_emulator::load_config
#define _tile_release amx_emulator::release
#define _tile_loadd amx_emulator::load
#define _tile_stored amx_emulator::store
#define _tile_zero amx_emulator::zero
#define _tile_dpbssd (amx_emulator::multiply<int8_t, int8_t>)
#define _tile_dpbusd (amx_emulator::multiply<uint8_t, int8_t>)
#define _mm256_dpwssd_epi32 amx_emulator::add_products_of_words
#define _mm256_dpbusd_epi32 amx_emulator::add_products_of_bytes
