// Sixteen float lanes on any instruction set (GCC/Clang vector extensions; intrinsics where those fall
// short). Only for the per-instruction-set translation units: all of it is in an anonymous namespace, see
// elements.h.
#pragma once

#include "cpu/elements.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>

#if defined(__AVX2__)
#include <immintrin.h>
#else
#include <torch/headeronly/util/Half.h>
#endif

namespace vitcop {
namespace {

constexpr int64_t kLanes = 16;
typedef float V16 __attribute__((vector_size(64)));
typedef float V8 __attribute__((vector_size(32)));
typedef float V4 __attribute__((vector_size(16)));
typedef int32_t I16 __attribute__((vector_size(64)));
typedef uint32_t U16 __attribute__((vector_size(64)));
typedef uint16_t H16 __attribute__((vector_size(32)));
typedef int8_t B16 __attribute__((vector_size(16)));

template <class To, class From>
inline To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

inline V16 splat(float x) {
  return V16{} + x;
}

inline V16 load(const float* p) {
  V16 v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

inline V16 load(const bf16* p) {
  H16 h;
  std::memcpy(&h, p, sizeof(h));
  return bits_as<V16>(__builtin_convertvector(h, U16) << 16);
}

inline V16 load(const f16* p) {
#if defined(__AVX512F__)
  return bits_as<V16>(_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#else
  float lanes[kLanes];
#if defined(__AVX2__)
  for (int half = 0; half < 2; ++half) {
    const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8 * half));
    _mm256_storeu_ps(lanes + 8 * half, _mm256_cvtph_ps(h));
  }
#else
  for (int i = 0; i < kLanes; ++i) lanes[i] = c10::detail::fp16_ieee_to_fp32_value(p[i].bits);
#endif
  return load(lanes);
#endif
}

// The first `count` < 16 lanes, the others zero.
template <class T>
inline V16 load_some(const T* p, int64_t count) {
  T lanes[kLanes] = {};
  std::memcpy(lanes, p, static_cast<size_t>(count) * sizeof(T));
  return load(lanes);
}

inline void store(float* p, V16 v) {
  std::memcpy(p, &v, sizeof(v));
}

inline void store(bf16* p, V16 v) {
  const U16 bits = bits_as<U16>(v);
  const U16 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest even
  const I16 is_nan = v != v;
  const H16 h = __builtin_convertvector(is_nan ? (U16{} + 0x7fc0) : rounded, H16);
  std::memcpy(p, &h, sizeof(h));
}

inline void store(f16* p, V16 v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_maskz_cvtps_ph(0xffff, bits_as<__m512>(v), _MM_FROUND_TO_NEAREST_INT));
#else
  float lanes[kLanes];
  store(lanes, v);
#if defined(__AVX2__)
  for (int half = 0; half < 2; ++half) {
    const __m128i h = _mm256_cvtps_ph(_mm256_loadu_ps(lanes + 8 * half), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8 * half), h);
  }
#else
  for (int i = 0; i < kLanes; ++i) p[i].bits = c10::detail::fp16_ieee_from_fp32_value(lanes[i]);
#endif
#endif
}

template <class T>
inline void store_some(T* p, V16 v, int64_t count) {
  T lanes[kLanes];
  store(lanes, v);
  std::memcpy(p, lanes, static_cast<size_t>(count) * sizeof(T));
}

// a * b + c, fused where the instruction set can.
inline V16 fma(V16 a, V16 b, V16 c) {
#if defined(__AVX512F__)
  return bits_as<V16>(_mm512_fmadd_ps(bits_as<__m512>(a), bits_as<__m512>(b), bits_as<__m512>(c)));
#elif defined(__AVX2__)
  struct Halves {
    __m256 half[2];
  };
  const Halves x = bits_as<Halves>(a), y = bits_as<Halves>(b), z = bits_as<Halves>(c);
  return bits_as<V16>(Halves{
      {_mm256_fmadd_ps(x.half[0], y.half[0], z.half[0]), _mm256_fmadd_ps(x.half[1], y.half[1], z.half[1])}});
#else
  return a * b + c;
#endif
}

inline V16 max(V16 a, V16 b) {
  return a > b ? a : b;
}

// Sum and maximum of the lanes, always in the same order.
inline float sum(V16 v) {
  const V8 w = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
               __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
  const V4 u = __builtin_shufflevector(w, w, 0, 1, 2, 3) + __builtin_shufflevector(w, w, 4, 5, 6, 7);
  return (u[0] + u[2]) + (u[1] + u[3]);
}

inline float max(V16 v) {
  float high = v[0];
  for (int i = 1; i < kLanes; ++i) high = v[i] > high ? v[i] : high;
  return high;
}

// exp(x) for x <= 0 to about 1 ulp (Cephes' polynomial); 0 below -87, NaN stays NaN.
inline V16 exp_nonpositive(V16 x) {
  const V16 round = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  const V16 t = fma(x, splat(1.44269504088896341f), round);
  const V16 n = t - round;
  V16 r = fma(n, splat(-0.693359375f), x);
  r = fma(n, splat(2.12194440e-4f), r);
  V16 p = splat(1.9875691500e-4f);
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    p = fma(p, r, splat(c));
  const V16 y = fma(p, r * r, r) + 1.0f;
  const U16 exponent = (bits_as<U16>(t) - bits_as<U16>(round) + 127) << 23;
  return x < -87.0f ? V16{} : y * bits_as<V16>(exponent);
}

}  // namespace
}  // namespace vitcop
