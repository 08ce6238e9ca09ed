// Reading tokens: as float32 vectors, packed into panels, and pair by pair.
#pragma once

#include "cpu/vic/simd.h"

namespace vitcop::vic::VITCOP_VIC_NS {

struct F32 {
  using Element = float;
  static VITCOP_INLINE V vector(const float* p) { return load(p); }
  static VITCOP_INLINE float scalar(float x) { return x; }
};

struct BF16 {
  using Element = uint16_t;
  static VITCOP_INLINE V vector(const uint16_t* p) {
    U16 u;
    __builtin_memcpy(&u, p, sizeof u);
    return bits(__builtin_convertvector(u, I) << 16);
  }
  static VITCOP_INLINE float scalar(uint16_t x) { return __builtin_bit_cast(float, uint32_t(x) << 16); }
};

struct F16 {
  using Element = uint16_t;
  static VITCOP_INLINE V vector(const uint16_t* p) {
#if VITCOP_VIC_LEVEL >= 2
    return _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif VITCOP_VIC_LEVEL == 1
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
    V v;
    for (int l = 0; l < W; ++l) v[l] = scalar(p[l]);
    return v;
#endif
  }
  static VITCOP_INLINE float scalar(uint16_t x) {
    const uint32_t sign = uint32_t(x & 0x8000) << 16, magnitude = uint32_t(x & 0x7fff) << 13;
    if (magnitude >= 0x0f800000) return __builtin_bit_cast(float, sign | magnitude | 0x7f800000);
    // 2^112 moves the exponent's bias from 15 to 127, subnormals included.
    const float value = __builtin_bit_cast(float, magnitude) * 0x1p112f;
    return __builtin_bit_cast(float, sign | __builtin_bit_cast(uint32_t, value));
  }
};

// Words [k, k + W) of a row for the panel, zeros beyond the row's end, less the anchor.
template <class T>
VITCOP_INLINE V words(const typename T::Element* row, int64_t k, int64_t d, const float* anchor) {
#if VITCOP_VIC_LEVEL == 3
  uint16_t x[2 * W] = {};
  const int64_t left = d - 2 * k;
  V v;
  if (left >= 2 * W && !anchor) {
    __builtin_memcpy(&v, row + 2 * k, sizeof v);
    return v;
  }
  __builtin_memcpy(x, row + 2 * k, 2 * (left < 2 * W ? left : 2 * W));
  if (anchor) {
    for (int l = 0; l < 2 * W; ++l) {
      const float shifted = BF16::scalar(x[l]) - anchor[2 * k + l];
      x[l] = __builtin_bit_cast(uint32_t, shifted) >> 16;  // exact: see anchors()
    }
  }
  __builtin_memcpy(&v, x, sizeof v);
  return v;
#else
  V v;
  if (k + W <= d) {
    v = T::vector(row + k);
  } else {
    typename T::Element x[W] = {};
    __builtin_memcpy(x, row + k, sizeof(x[0]) * (d - k));
    v = T::vector(x);
  }
  return anchor ? v - load(anchor + k) : v;
#endif
}

template <class T>
bool finite(const typename T::Element* row, int64_t d) {
  bool all = true;
  for (int64_t k = 0; k < d; ++k) {
    const float x = T::scalar(row[k]);
    all &= x - x == 0;
  }
  return all;
}

constexpr int64_t kBlockWords = 256;  // sums run over blocks of this many words, then over the blocks

template <class T>
bool pack(const Tokens& tokens, const float* anchor, int64_t panel, float* packed, float* norm) {
  using E = typename T::Element;
  const int64_t i0 = panel * W, rows = tokens.n - i0 < W ? tokens.n - i0 : W, d = tokens.d;
  const int64_t count = VITCOP_VIC_LEVEL == 3 ? (d + 1) / 2 : d;
  const E* row[W];
  for (int r = 0; r < W; ++r) row[r] = static_cast<const E*>(tokens.row(i0 + (r < rows ? r : 0)));

  // The norms come from the very operations of the Gram tiles, so that duplicates get |x|^2 + |x|^2 - 2 x.x =
  // 0.
  V total{};
  for (int64_t block = 0; block < count; block += kBlockWords) {
    V acc{};
    const int64_t end = count - block < kBlockWords ? count : block + kBlockWords;
    for (int64_t k = block; k < end; k += W) {
      V v[W];
#pragma GCC unroll 16
      for (int r = 0; r < W; ++r) v[r] = words<T>(row[r], k, d, anchor);
      for (int64_t r = rows; r < W; ++r) v[r] = V{};
      transpose(v);
#pragma GCC unroll 16
      for (int r = 0; r < W; ++r) {
        store(packed + (k + r) * W, v[r]);
        acc = madd(v[r], v[r], acc);
      }
    }
    total = block == 0 ? acc : total + acc;
  }
  store(norm, total);

  bool beyond = false;
  for (int r = 0; r < W; ++r) {
    if (r < rows) {
      if (norm[r] < kHuge) continue;
      beyond |= finite<T>(row[r], d);
      for (int64_t k = 0; k < count; ++k) packed[k * W + r] = 0;
    }
    norm[r] = __builtin_inff();
  }
  return beyond;
}

// |x_i - x_j|^2 by differences of the original values. NaN: not zero, yet too small for float32.
template <class T>
__attribute__((noinline)) float direct(const Tokens& tokens, int64_t i, int64_t j) {
  using E = typename T::Element;
  const E* a = static_cast<const E*>(tokens.row(i));
  const E* b = static_cast<const E*>(tokens.row(j));
  const int64_t d = tokens.d;
  if (__builtin_memcmp(a, b, sizeof(E) * d) == 0)
    return 0;  // duplicates are common, and this is the fast way out
  V acc[4] = {};
  int64_t k = 0;
  for (; k + 4 * W <= d; k += 4 * W) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const V gap = T::vector(a + k + v * W) - T::vector(b + k + v * W);
      acc[v] = fma(gap, gap, acc[v]);
    }
  }
  for (; k + W <= d; k += W) {
    const V gap = T::vector(a + k) - T::vector(b + k);
    acc[0] = fma(gap, gap, acc[0]);
  }
  float rest = 0;
  for (; k < d; ++k) {
    const float gap = T::scalar(a[k]) - T::scalar(b[k]);
    rest += gap * gap;
  }
  const float q = sum((acc[0] + acc[1]) + (acc[2] + acc[3])) + rest;
  if (q < kTiny) {
    for (k = 0; k < d; ++k)
      if (T::scalar(a[k]) != T::scalar(b[k])) return __builtin_nanf("");
  }
  return q;
}

}  // namespace vitcop::vic::VITCOP_VIC_NS
