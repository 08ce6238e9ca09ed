// One instruction set's vectors. Everything here and in the headers that include it lives in that set's
// namespace, and uses no library templates: the linker must never hand AVX-512 code to a lesser processor.
#pragma once

#include "cpu/vic/types.h"

#include <cstdint>
#include <utility>

#if VITCOP_VIC_LEVEL > 0
#include <immintrin.h>
#endif

#define VITCOP_INLINE inline __attribute__((always_inline))

namespace vitcop::vic::VITCOP_VIC_NS {

#if VITCOP_VIC_LEVEL >= 2
constexpr int W = 16, MR = 8, NV = 3;  // a tile of registers is MR rows by NV vectors
#elif VITCOP_VIC_LEVEL == 1
constexpr int W = 8, MR = 4, NV = 3;
#else
constexpr int W = 4, MR = 4, NV = 2;
#endif

typedef float V __attribute__((vector_size(4 * W)));
typedef int32_t I __attribute__((vector_size(4 * W)));
typedef double D __attribute__((vector_size(4 * W)));  // half as many lanes
typedef uint16_t U16 __attribute__((vector_size(2 * W)));

VITCOP_INLINE V load(const float* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
VITCOP_INLINE void store(float* p, V v) {
  __builtin_memcpy(p, &v, sizeof v);
}
VITCOP_INLINE D load(const double* p) {
  D v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
VITCOP_INLINE V splat(float x) {  // not V{} + x, which has to be an addition (of -0)
#if VITCOP_VIC_LEVEL >= 2
  return _mm512_set1_ps(x);
#elif VITCOP_VIC_LEVEL == 1
  return _mm256_set1_ps(x);
#else
  return V{x, x, x, x};
#endif
}
VITCOP_INLINE V bits(I i) {
  return reinterpret_cast<V>(i);
}
VITCOP_INLINE I bits(V v) {
  return reinterpret_cast<I>(v);
}

VITCOP_INLINE V fma(V a, V b, V c) {
#if VITCOP_VIC_LEVEL >= 2
  return _mm512_fmadd_ps(a, b, c);
#elif VITCOP_VIC_LEVEL == 1
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

// What a Gram element adds up: the product of two words.
VITCOP_INLINE V madd(V a, V b, V c) {
#if VITCOP_VIC_LEVEL == 3
  return _mm512_dpbf16_ps(c, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
#else
  return fma(a, b, c);
#endif
}

VITCOP_INLINE V min(V a, V b) {
  return a < b ? a : b;
}
VITCOP_INLINE V max(V a, V b) {
  return a > b ? a : b;
}

// A bit per lane.
VITCOP_INLINE uint32_t less(V a, V b) {
#if VITCOP_VIC_LEVEL >= 2
  return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ);
#elif VITCOP_VIC_LEVEL == 1
  return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_LT_OQ));
#else
  const I m = a < b;
  return (m[0] & 1) | (m[1] & 2) | (m[2] & 4) | (m[3] & 8);
#endif
}
VITCOP_INLINE uint32_t less(I a, I b) {
#if VITCOP_VIC_LEVEL >= 2
  return _mm512_cmplt_epi32_mask(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b));
#elif VITCOP_VIC_LEVEL == 1
  return _mm256_movemask_ps(reinterpret_cast<__m256>(a < b));
#else
  const I m = a < b;
  return (m[0] & 1) | (m[1] & 2) | (m[2] & 4) | (m[3] & 8);
#endif
}

// a <= b, a bit per lane.
VITCOP_INLINE uint32_t at_most(D a, D b) {
#if VITCOP_VIC_LEVEL >= 2
  return _mm512_cmp_pd_mask(a, b, _CMP_LE_OQ);
#elif VITCOP_VIC_LEVEL == 1
  return _mm256_movemask_pd(_mm256_cmp_pd(a, b, _CMP_LE_OQ));
#else
  return uint32_t(a[0] <= b[0]) | uint32_t(a[1] <= b[1]) << 1;
#endif
}

// The lower and the upper lanes in float64. (The maskz forms spare us GCC's warnings about its own header.)
VITCOP_INLINE D low(V v) {
#if VITCOP_VIC_LEVEL >= 2
  return _mm512_maskz_cvtps_pd(0xff, _mm512_maskz_extractf32x8_ps(0xff, v, 0));
#elif VITCOP_VIC_LEVEL == 1
  return _mm256_cvtps_pd(_mm256_castps256_ps128(v));
#else
  return D{v[0], v[1]};
#endif
}
VITCOP_INLINE D high(V v) {
#if VITCOP_VIC_LEVEL >= 2
  return _mm512_maskz_cvtps_pd(0xff, _mm512_maskz_extractf32x8_ps(0xff, v, 1));
#elif VITCOP_VIC_LEVEL == 1
  return _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1));
#else
  return D{v[2], v[3]};
#endif
}

// v with lane l replaced by lane l ^ S.
template <int S, int... L>
VITCOP_INLINE V swapped(V v, std::integer_sequence<int, L...>) {
  return __builtin_shufflevector(v, v, (L ^ S)...);
}
template <int S>
VITCOP_INLINE V swapped(V v) {
  return swapped<S>(v, std::make_integer_sequence<int, W>());
}

// Sums and minima over the lanes, in a fixed order.
VITCOP_INLINE float sum(V v) {
  if constexpr (W > 8) v += swapped<8>(v);
  if constexpr (W > 4) v += swapped<4>(v);
  v += swapped<2>(v);
  v += swapped<1>(v);
  return v[0];
}
VITCOP_INLINE float least(V v) {
  if constexpr (W > 8) v = min(swapped<8>(v), v);
  if constexpr (W > 4) v = min(swapped<4>(v), v);
  v = min(swapped<2>(v), v);
  v = min(swapped<1>(v), v);
  return v[0];
}

// One step of a transposition: swaps bit S of the row number with bit S of the lane number.
template <int S, int... L>
VITCOP_INLINE void exchange(V (&r)[W], std::integer_sequence<int, L...>) {
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i) {
    if (i & S) continue;
    const V a = r[i], b = r[i + S];
    r[i] = __builtin_shufflevector(a, b, ((L & S) ? W + L - S : L)...);
    r[i + S] = __builtin_shufflevector(a, b, ((L & S) ? W + L : L + S)...);
  }
}
VITCOP_INLINE void transpose(V (&r)[W]) {
  constexpr auto lanes = std::make_integer_sequence<int, W>();
  if constexpr (W > 8) exchange<8>(r, lanes);
  if constexpr (W > 4) exchange<4>(r, lanes);
  exchange<2>(r, lanes);
  exchange<1>(r, lanes);
}

}  // namespace vitcop::vic::VITCOP_VIC_NS
