// The PTX instructions that the kernels of this tree use, as functions: warp-wide products of small matrices
// (mma), their loads (ldmatrix) and asynchronous copies (cp.async). Layouts are those of the PTX manual.
//
// A copy happens when it is waited for, not before: a kernel that forgets to wait reads what was there.
#pragma once

#include <cuda_runtime.h>

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "cuda_fp8.h"

namespace cuda_emulator {

struct Fragments {
  uint32_t a[4], b[2];
};

inline float element(uint32_t word, int i, __half*) {
  const uint16_t bits = uint16_t(word >> (16 * i));
  __half value;
  std::memcpy(&value, &bits, sizeof(value));
  return __half2float(value);
}

inline float element(uint32_t word, int i, __nv_bfloat16*) {
  const uint16_t bits = uint16_t(word >> (16 * i));
  __nv_bfloat16 value;
  std::memcpy(&value, &bits, sizeof(value));
  return __bfloat162float(value);
}

inline const std::vector<float> e4m3_numbers = [] {
  std::vector<float> numbers(256);
  for (int code = 0; code < 256; ++code) {
    __nv_fp8_e4m3 value;
    value.__x = uint8_t(code);
    numbers[size_t(code)] = float(value);
  }
  return numbers;
}();

inline int number(uint8_t byte, int8_t*) { return int8_t(byte); }
inline float number(uint8_t byte, __nv_fp8_e4m3*) { return e4m3_numbers[byte]; }

template <class T>
auto element(uint32_t word, int i, T* type) -> decltype(number(uint8_t(0), type)) {
  return number(uint8_t(word >> (8 * i)), type);
}

// d += a b for a [16, K], b [K, 8], K = 32 bytes of T. Lane 4 g + t holds rows g and g + 8 of a and d, column g of b.
template <class T, class Sum>
void mma(Sum (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  constexpr int kPer = 4 / sizeof(T);  // elements in a word
  Fragments own;
  std::memcpy(own.a, a, sizeof(own.a));
  std::memcpy(own.b, b, sizeof(own.b));
  const auto posts = post(own);
  const int g = lane() / 4, t = lane() % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = g + i / 2 * 8, column = 2 * t + i % 2;
    for (int half = 0; half < 2; ++half) {
      for (int k = 0; k < 4; ++k) {  // the lane that holds this word of the row, and of the column
        const uint32_t left = posts.at(row % 8 * 4 + k).a[row / 8 + 2 * half];
        const uint32_t right = posts.at(column * 4 + k).b[half];
        for (int e = 0; e < kPer; ++e) {
          d[i] += element(left, e, static_cast<T*>(nullptr)) * element(right, e, static_cast<T*>(nullptr));
        }
      }
    }
  }
}

inline uint16_t bits_of(double value, __half*) {
  const __half half = {_Float16(value)};
  uint16_t bits;
  std::memcpy(&bits, &half, sizeof(bits));
  return bits;
}

// A product of two, and a sum of that with a third, of what kernels have is exact in float32.
inline uint16_t bits_of(double value, __nv_bfloat16*) { return __float2bfloat16_rn(float(value)).bits; }

// a * b + c for both elements of a word, rounded once.
template <class T>
uint32_t fma_pairs(uint32_t a, uint32_t b, uint32_t c, T* type) {
  uint32_t d = 0;
  for (int i = 0; i < 2; ++i) {
    const double product = double(element(a, i, type)) * double(element(b, i, type));
    d |= uint32_t(bits_of(product + double(element(c, i, type)), type)) << (16 * i);
  }
  return d;
}

// Four matrices of 8 by 8 16-bit elements; lane 8 m + i gives row i of matrix m, 16 bytes. Lane 4 g + t gets elements
// (g, 2 t) and (g, 2 t + 1) of each, or transposed (2 t, g) and (2 t + 1, g).
template <bool kTransposed>
void load_matrices(uint32_t (&to)[4], const void* row) {
  const auto posts = post(row);
  const int g = lane() / 4, t = lane() % 4;
  for (int m = 0; m < 4; ++m) {
    uint16_t pair[2];
    for (int e = 0; e < 2; ++e) {
      const int i = kTransposed ? 2 * t + e : g, j = kTransposed ? g : 2 * t + e;
      std::memcpy(&pair[e], static_cast<const char*>(posts.at(8 * m + i)) + 2 * j, 2);
    }
    std::memcpy(&to[m], pair, sizeof(pair));
  }
}

inline void run_copies(std::vector<Copy>& copies) {
  for (const Copy& copy : copies) {
    if (copy.from) {
      std::memcpy(copy.to, copy.from, copy.bytes);
    } else {
      std::memset(copy.to, 0, copy.bytes);
    }
  }
  copies.clear();
}

inline void copy_async(void* shared, const void* global, bool valid) {
  block->current->copies.back().push_back({shared, valid ? global : nullptr, 16});
}

inline void commit_copies() { block->current->copies.emplace_back(); }

// Until all groups but the last `pending` committed ones are there.
inline void wait_copies(size_t pending) {
  auto& groups = block->current->copies;
  while (groups.size() > pending + 1) {
    run_copies(groups.front());
    groups.erase(groups.begin());
  }
}

}  // namespace cuda_emulator
