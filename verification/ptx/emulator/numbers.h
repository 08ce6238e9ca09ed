// Number formats: bfloat16, half, tf32, flushing of subnormals.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace ptx {

using std::string;
using std::vector;
typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int8_t s8;
typedef int16_t s16;
typedef int32_t s32;
typedef int64_t s64;

constexpr u32 FULL = 0xffffffffu;
constexpr u32 SHARED_BASE = 1024;           // where dynamic shared memory starts in the shared window
constexpr u64 GENERIC_SHARED = 1ull << 48;  // shared window in generic addresses
constexpr u64 GENERIC_LOCAL = 1ull << 49;   // a thread's local memory in generic addresses
constexpr u32 NONE = 0xffffffffu;

template <class To, class From>
inline To bits(From x) {
  To y;
  static_assert(sizeof(x) == sizeof(y));
  memcpy(&y, &x, sizeof y);
  return y;
}

// ---------------------------------------------------------------------------------------------------- number
// formats
inline float bf2f(u16 x) {
  return bits<float>(u32(x) << 16);
}
inline u16 f2bf(float f) {
  u32 u = bits<u32>(f);
  if ((u & 0x7fffffff) > 0x7f800000) return 0x7fff;
  return u16((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
inline u16 f2bf_rz(float f) {
  u32 u = bits<u32>(f);
  return (u & 0x7fffffff) > 0x7f800000 ? 0x7fff : u16(u >> 16);
}
inline float h2f(u16 h) {
  u32 s = u32(h & 0x8000) << 16, e = (h >> 10) & 31, m = h & 1023;
  if (e == 31) return bits<float>(s | 0x7f800000 | (m << 13));
  if (e == 0) {
    float f = float(m) * 5.9604644775390625e-8f;
    return s ? -f : f;
  }
  return bits<float>(s | ((e + 112) << 23) | (m << 13));
}
// Double to half, rounded once to nearest even (float arguments are exact in double).
inline u16 d2h(double x) {
  u16 s = std::signbit(x) ? 0x8000 : 0;
  if (std::isnan(x)) return 0x7fff;
  double a = std::fabs(x);
  if (a >= 65520.0) return s | 0x7c00;
  if (a < 6.103515625e-05) return s | u16(std::nearbyint(a * 16777216.0));
  int e;
  double f = std::frexp(a, &e);             // f in [0.5, 1)
  u32 m = u32(std::nearbyint(f * 2048.0));  // [1024, 2048]
  return s | u16(((e + 14) << 10) + (m - 1024));
}
inline u16 f2h(float f) {
  return d2h(f);
}
inline float ftz(float f) {
  return std::fabs(f) < 1.17549435e-38f ? std::copysign(0.0f, f) : f;
}
inline float tf32(u32 u) {
  return bits<float>(u & 0xffffe000);
}
inline u32 rna_tf32(u32 u) {
  if ((u & 0x7f800000) == 0x7f800000) return (u & 0x7fffff) ? 0x7fffffff : u;
  return (u + 0x1000) & 0xffffe000;
}

}  // namespace ptx
