// Arithmetic: one function an opcode and type.
#pragma once

#include "launch.h"

namespace ptx {

template <class T, class F>
void un(Warp& w, const Ins& I, u32 m) {
  T* d = reg<T>(w, I.d);
  const T* a = reg<T>(w, I.a);
  LANES(m, d[l] = F::f(a[l]));
}
template <class T, class F>
void bin(Warp& w, const Ins& I, u32 m) {
  T* d = reg<T>(w, I.d);
  const T* a = reg<T>(w, I.a);
  const T* b = reg<T>(w, I.b);
  LANES(m, d[l] = F::f(a[l], b[l]));
}
template <class T, class F>
void tri(Warp& w, const Ins& I, u32 m) {
  T* d = reg<T>(w, I.d);
  const T* a = reg<T>(w, I.a);
  const T* b = reg<T>(w, I.b);
  const T* c = reg<T>(w, I.c);
  LANES(m, d[l] = F::f(a[l], b[l], c[l]));
}
template <class D, class A, class F>
void conv(Warp& w, const Ins& I, u32 m) {
  D* d = reg<D>(w, I.d);
  const A* a = reg<A>(w, I.a);
  LANES(m, d[l] = F::f(a[l]));
}
template <class T, class F>
void shf(Warp& w, const Ins& I, u32 m) {
  T* d = reg<T>(w, I.d);
  const T* a = reg<T>(w, I.a);
  const u32* b = reg<u32>(w, I.b);
  LANES(m, d[l] = F::f(a[l], b[l]));
}

#define OP1(N, E)            \
  struct N {                 \
    template <class T>       \
    static inline T f(T a) { \
      return T(E);           \
    }                        \
  };
#define OP2(N, E)                 \
  struct N {                      \
    template <class T>            \
    static inline T f(T a, T b) { \
      return T(E);                \
    }                             \
  };
#define OP3(N, E)                      \
  struct N {                           \
    template <class T>                 \
    static inline T f(T a, T b, T c) { \
      return T(E);                     \
    }                                  \
  };
OP2(Add, a + b)
OP2(Sub, a - b)
OP2(And, (a & b))
OP2(Or, a | b)
OP2(Xor, a ^ b)
OP1(Not, ~a)
OP1(Neg, -a)
OP1(Mov, a)
OP2(MinI, a < b ? a : b)
OP2(MaxI, a > b ? a : b)
OP1(AbsI, a < 0 ? T(0) - a : a)
OP1(CNot, a == 0)
OP3(MadLo, a* b + c) struct MulLo {
  template <class T>
  static inline T f(T a, T b) {
    return a * b;
  }
  static inline u16 f(u16 a, u16 b) { return u16(u32(a) * u32(b)); }
};
template <class T>
struct Wide;
template <>
struct Wide<s32> {
  typedef s64 t;
};
template <>
struct Wide<u32> {
  typedef u64 t;
};
template <>
struct Wide<s16> {
  typedef s32 t;
};
template <>
struct Wide<u16> {
  typedef u32 t;
};
template <>
struct Wide<s64> {
  typedef __int128 t;
};
template <>
struct Wide<u64> {
  typedef unsigned __int128 t;
};
struct MulHi {
  template <class T>
  static inline T f(T a, T b) {
    typedef typename Wide<T>::t W;
    return T((W(a) * W(b)) >> (8 * sizeof(T)));
  }
};
struct MadHi {
  template <class T>
  static inline T f(T a, T b, T c) {
    return T(MulHi::f(a, b) + c);
  }
};
struct DivI {
  template <class T>
  static inline T f(T a, T b) {
    if (b == 0) return T(~T(0));
    if (std::is_signed<T>::value && b == T(-1)) return T(0) - a;
    return a / b;
  }
};
struct RemI {
  template <class T>
  static inline T f(T a, T b) {
    if (b == 0) return a;
    if (std::is_signed<T>::value && b == T(-1)) return 0;
    return a % b;
  }
};
template <class S>
void mulWide(Warp& w, const Ins& I, u32 m) {
  typedef typename Wide<S>::t W;
  W* d = reg<W>(w, I.d);
  const S* a = reg<S>(w, I.a);
  const S* b = reg<S>(w, I.b);
  LANES(m, d[l] = W(a[l]) * W(b[l]));
}
template <class S>
void madWide(Warp& w, const Ins& I, u32 m) {
  typedef typename Wide<S>::t W;
  W* d = reg<W>(w, I.d);
  const S* a = reg<S>(w, I.a);
  const S* b = reg<S>(w, I.b);
  const W* c = reg<W>(w, I.c);
  typedef typename std::make_unsigned<W>::type U;
  LANES(m, d[l] = W(U(W(a[l]) * W(b[l])) + U(c[l])));
}
struct Shl {
  template <class T>
  static inline T f(T a, u32 b) {
    return b >= 8 * sizeof(T) ? T(0) : T(a << b);
  }
};
struct Shr {
  template <class T>
  static inline T f(T a, u32 b) {
    if (b >= 8 * sizeof(T)) return std::is_signed<T>::value && a < 0 ? T(-1) : T(0);
    return T(a >> b);
  }
};

// Floats. min and max take the number if one is NaN; NaN results are canonical.
inline float canon(float x) {
  return x != x ? bits<float>(0x7fffffffu) : x;
}
inline double canon(double x) {
  return x != x ? bits<double>(0xfff8000000000000ull) : x;
}
struct FMin {
  template <class T>
  static inline T f(T a, T b) {
    if (a != a) return b != b ? canon(a) : b;
    if (b != b) return a;
    if (a == b) return std::signbit(a) ? a : b;
    return a < b ? a : b;
  }
  template <class T>
  static inline T f(T a, T b, T c) {
    return f(f(a, b), c);
  }
};
struct FMax {
  template <class T>
  static inline T f(T a, T b) {
    if (a != a) return b != b ? canon(a) : b;
    if (b != b) return a;
    if (a == b) return std::signbit(a) ? b : a;
    return a > b ? a : b;
  }
  template <class T>
  static inline T f(T a, T b, T c) {
    return f(f(a, b), c);
  }
};
struct FMinN {
  template <class T>
  static inline T f(T a, T b) {
    return a != a || b != b ? canon(T(NAN)) : FMin::f(a, b);
  }
  template <class T>
  static inline T f(T a, T b, T c) {
    return f(f(a, b), c);
  }
};
struct FMaxN {
  template <class T>
  static inline T f(T a, T b) {
    return a != a || b != b ? canon(T(NAN)) : FMax::f(a, b);
  }
  template <class T>
  static inline T f(T a, T b, T c) {
    return f(f(a, b), c);
  }
};
struct FAdd {
  template <class T>
  static inline T f(T a, T b) {
    return a + b;
  }
};
struct FSub {
  template <class T>
  static inline T f(T a, T b) {
    return a - b;
  }
};
struct FMul {
  template <class T>
  static inline T f(T a, T b) {
    return a * b;
  }
};
struct FDiv {
  template <class T>
  static inline T f(T a, T b) {
    return a / b;
  }
};
struct FFma {
  template <class T>
  static inline T f(T a, T b, T c) {
    return std::fma(a, b, c);
  }
};
struct FNeg {
  static inline float f(float a) { return bits<float>(bits<u32>(a) ^ 0x80000000u); }
  static inline double f(double a) { return bits<double>(bits<u64>(a) ^ (1ull << 63)); }
};
struct FAbs {
  template <class T>
  static inline T f(T a) {
    return std::fabs(a);
  }
};
struct FSqrt {
  template <class T>
  static inline T f(T a) {
    return std::sqrt(a);
  }
};
struct FRcp {
  template <class T>
  static inline T f(T a) {
    return T(1) / a;
  }
};
struct FCopysign {
  template <class T>
  static inline T f(T a, T b) {
    return std::copysign(b, a);
  }
};
template <class F>
struct Ftz {
  static inline float f(float a) { return ftz(F::f(ftz(a))); }
  static inline float f(float a, float b) { return ftz(F::f(ftz(a), ftz(b))); }
  static inline float f(float a, float b, float c) { return ftz(F::f(ftz(a), ftz(b), ftz(c))); }
};
// 16-bit floats by way of float: one operation rounded once more to 16 bits is right (double rounding is
// harmless for
// + - * with 24 >= 2 p + 2 bits; fma goes through double).
struct H {
  static inline float up(u16 x) { return h2f(x); }
  static inline u16 down(double x) { return d2h(x); }
};
inline u16 d2bf(double x) {  // round to odd in float first
  float f = float(x);
  if (f == f && std::isfinite(f) && double(f) != x) {
    u32 u = bits<u32>(f);
    if (std::fabs(double(f)) > std::fabs(x)) u--;
    f = bits<float>(u | 1);
  }
  return f2bf(f);
}
struct B {
  static inline float up(u16 x) { return bf2f(x); }
  static inline u16 down(double x) { return d2bf(x); }
};
template <class H_, class F>
struct Half {
  static inline u16 f(u16 a) { return H_::down(F::f(H_::up(a))); }
  static inline u16 f(u16 a, u16 b) { return H_::down(F::f(double(H_::up(a)), double(H_::up(b)))); }
  static inline u16 f(u16 a, u16 b, u16 c) {
    return H_::down(double(H_::up(a)) * double(H_::up(b)) + double(H_::up(c)));
  }
};
template <class H_, class F>
struct Half2 {
  static inline u32 f(u32 a) { return Half<H_, F>::f(u16(a)) | u32(Half<H_, F>::f(u16(a >> 16))) << 16; }
  static inline u32 f(u32 a, u32 b) {
    return Half<H_, F>::f(u16(a), u16(b)) | u32(Half<H_, F>::f(u16(a >> 16), u16(b >> 16))) << 16;
  }
  static inline u32 f(u32 a, u32 b, u32 c) {
    return Half<H_, F>::f(u16(a), u16(b), u16(c)) |
           u32(Half<H_, F>::f(u16(a >> 16), u16(b >> 16), u16(c >> 16))) << 16;
  }
};
template <class T, class F>
struct Int2 {  // u16x2 and s16x2
  static inline u32 f(u32 a, u32 b) {
    return u32(u16(F::f(T(u16(a)), T(u16(b))))) | u32(u16(F::f(T(u16(a >> 16)), T(u16(b >> 16))))) << 16;
  }
};
template <class F>
struct Pair {  // f32x2
  static inline u64 f(u64 a, u64 b) {
    return u64(bits<u32>(F::f(bits<float>(u32(a)), bits<float>(u32(b))))) |
           u64(bits<u32>(F::f(bits<float>(u32(a >> 32)), bits<float>(u32(b >> 32))))) << 32;
  }
  static inline u64 f(u64 a, u64 b, u64 c) {
    return u64(bits<u32>(F::f(bits<float>(u32(a)), bits<float>(u32(b)), bits<float>(u32(c))))) |
           u64(bits<u32>(
               F::f(bits<float>(u32(a >> 32)), bits<float>(u32(b >> 32)), bits<float>(u32(c >> 32)))))
               << 32;
  }
};
struct HNeg {
  static inline u16 f(u16 a) { return a ^ 0x8000; }
};
struct HAbs {
  static inline u16 f(u16 a) { return a & 0x7fff; }
};
struct H2Neg {
  static inline u32 f(u32 a) { return a ^ 0x80008000u; }
};
struct H2Abs {
  static inline u32 f(u32 a) { return a & 0x7fff7fffu; }
};

// Approximations: rounded from double, off by one ulp where a hash of the argument says so if asked for.
inline float nudge(Warp& w, float x, float arg) {
  if (!w.L->cfg.approxNoise || !std::isfinite(x) || x == 0) return x;
  u32 h = bits<u32>(arg) * 2654435761u ^ (w.L->cfg.approxNoise * 40503u);
  h ^= h >> 15;
  h *= 2246822519u;
  h ^= h >> 13;
  int step = int(h % 3) - 1;
  // Exact results stay exact: hardware gives powers of two and zero exactly.
  u32 u = bits<u32>(x);
  if ((u & 0x7fffff) == 0) return x;
  return bits<float>(u + step);
}
#define APPROX(N, E)                                                                                \
  template <bool Z>                                                                                 \
  void N(Warp& w, const Ins& I, u32 m) {                                                            \
    float* d = reg<float>(w, I.d);                                                                  \
    const float* a = reg<float>(w, I.a);                                                            \
    LANES(m, float x = Z ? ftz(a[l]) : a[l]; double y = double(x); float r = nudge(w, float(E), x); \
          d[l] = canon(Z ? ftz(r) : r));                                                            \
  }
APPROX(ex2Approx, std::exp2(y))
APPROX(lg2Approx, std::log2(y))
APPROX(rcpApprox, 1.0 / y)
APPROX(sqrtApprox, std::sqrt(y))
APPROX(rsqrtApprox, 1.0 / std::sqrt(y))
APPROX(sinApprox, std::sin(y))
APPROX(cosApprox, std::cos(y))
APPROX(tanhApprox, std::tanh(y))
template <bool Z>
void divApprox(Warp& w, const Ins& I, u32 m) {  // div.full and div.approx: within 2 ulp
  float* d = reg<float>(w, I.d);
  const float* a = reg<float>(w, I.a);
  const float* b = reg<float>(w, I.b);
  LANES(m, float x = Z ? ftz(a[l]) : a[l]; float y = Z ? ftz(b[l]) : b[l]; float r = x / y;
        if (!(x == 0 || y == 0 || x == y)) r = nudge(w, r, bits<float>(bits<u32>(x) ^ (bits<u32>(y) * 31)));
        d[l] = canon(Z ? ftz(r) : r));
}
// The upper half of the argument is looked at; the lower half of the result is zero.
void rcp64(Warp& w, const Ins& I, u32 m) {
  double* d = reg<double>(w, I.d);
  const double* a = reg<double>(w, I.a);
  LANES(m, double x = bits<double>(bits<u64>(a[l]) & ~0xffffffffull);
        if (std::fabs(x) < 2.2250738585072014e-308) x = std::copysign(0.0, x); double r = 1.0 / x;
        if (r == r && std::fabs(r) < 2.2250738585072014e-308) r = std::copysign(0.0, r);
        d[l] = bits<double>(bits<u64>(r) & ~0xffffffffull));
}
void rsqrt64(Warp& w, const Ins& I, u32 m) {
  double* d = reg<double>(w, I.d);
  const double* a = reg<double>(w, I.a);
  LANES(m, double r = 1.0 / std::sqrt(a[l]); d[l] = bits<double>(bits<u64>(r) & ~0xffffffffull));
}

// ----------------------------------------------------------------------------------------------------
// comparisons
#define CMP(N, E)                    \
  struct N {                         \
    template <class T>               \
    static inline bool f(T a, T b) { \
      return E;                      \
    }                                \
  };
CMP(Eq, a == b)
CMP(Ne, a != b)
CMP(Lt, a < b)
CMP(Le, a <= b)
CMP(Gt, a > b)
CMP(Ge, a >= b)
CMP(FNe, a == a && b == b && a != b)
CMP(Equ, !(a == a && b == b) || a == b)
CMP(Neu, a != b)
CMP(Ltu, !(a >= b))
CMP(Leu, !(a > b))
CMP(Gtu, !(a <= b))
CMP(Geu, !(a < b))
CMP(Num, a == a && b == b)
CMP(Nan, a != a || b != b) inline void putPred(Warp& w, u32 off, u32 m, u32 r) {
  if (off != NONE) {
    u32& p = reg<u32>(w, off)[0];
    p = (p & ~m) | (r & m);
  }
}
template <class T, class F>
void setp(Warp& w, const Ins& I, u32 m) {
  const T* a = reg<T>(w, I.a);
  const T* b = reg<T>(w, I.b);
  u32 r = 0;
  for (int l = 0; l < 32; l++) r |= u32(F::f(a[l], b[l])) << l;
  if (I.sub == 0) {
    putPred(w, I.d, m, r);
    putPred(w, I.d2, m, ~r);
    return;
  }
  u32 c = reg<u32>(w, I.c)[0];
  if (I.negC) c = ~c;
  auto comb = [&](u32 x) { return I.sub == 1 ? x & c : I.sub == 2 ? x | c : x ^ c; };
  putPred(w, I.d, m, comb(r));
  putPred(w, I.d2, m, comb(~r));
}
template <class H_, class F>
void setpH(Warp& w, const Ins& I, u32 m) {
  const u16* a = reg<u16>(w, I.a);
  const u16* b = reg<u16>(w, I.b);
  u32 r = 0;
  for (int l = 0; l < 32; l++) r |= u32(F::f(H_::up(a[l]), H_::up(b[l]))) << l;
  putPred(w, I.d, m, r);
  putPred(w, I.d2, m, ~r);
}
template <class T>
void selp(Warp& w, const Ins& I, u32 m) {
  T* d = reg<T>(w, I.d);
  const T* a = reg<T>(w, I.a);
  const T* b = reg<T>(w, I.b);
  u32 p = reg<u32>(w, I.c)[0];
  if (I.negC) p = ~p;
  LANES(m, T x = a[l]; T y = b[l]; d[l] = (p >> l & 1) ? x : y);
}
template <class F>
void pred2(Warp& w, const Ins& I, u32 m) {
  putPred(w, I.d, m, F::f(reg<u32>(w, I.a)[0], reg<u32>(w, I.b)[0]));
}
void predNot(Warp& w, const Ins& I, u32 m) {
  putPred(w, I.d, m, ~reg<u32>(w, I.a)[0]);
}
void predMov(Warp& w, const Ins& I, u32 m) {
  putPred(w, I.d, m, reg<u32>(w, I.a)[0]);
}

// ---------------------------------------------------------------------------------------------------- bits
void prmt(Warp& w, const Ins& I, u32 m) {
  u32* d = reg<u32>(w, I.d);
  const u32 *a = reg<u32>(w, I.a), *b = reg<u32>(w, I.b), *c = reg<u32>(w, I.c);
  LANES(
      m, u64 x = a[l] | u64(b[l]) << 32; u32 s = c[l]; u32 r = 0; for (int k = 0; k < 4; k++) {
        u32 sel = s >> (4 * k) & 15;
        u8 v = u8(x >> (8 * (sel & 7)));
        if (sel & 8) v = (v & 0x80) ? 0xff : 0;
        r |= u32(v) << (8 * k);
      } d[l] = r);
}
template <class T>
void bfe(Warp& w, const Ins& I, u32 m) {
  constexpr int W = 8 * sizeof(T);
  T* d = reg<T>(w, I.d);
  const T* a = reg<T>(w, I.a);
  const u32 *b = reg<u32>(w, I.b), *c = reg<u32>(w, I.c);
  typedef typename std::make_unsigned<T>::type U;
  LANES(
      m, u32 pos = b[l] & 255; u32 len = c[l] & 255; U x = U(a[l]); U r = 0; if (len) {
        bool s = std::is_signed<T>::value && (x >> std::min<u32>(pos + len - 1, W - 1) & 1);
        U sh = pos >= W ? 0 : x >> pos;
        U mask = len >= W ? ~U(0) : (U(1) << len) - 1;
        if (pos + len > W && pos < W) {
          U have = (pos == 0) ? ~U(0) : (U(1) << (W - pos)) - 1;
          r = (sh & have & mask) | (s ? (~have) : 0);
          if (!std::is_signed<T>::value) r &= mask;
        } else if (pos >= W)
          r = s ? ~U(0) : 0;
        else
          r = (sh & mask) | (s ? ~mask : 0);
      } d[l] = T(r));
}
template <class T>
void bfi(Warp& w, const Ins& I, u32 m) {
  constexpr u32 W = 8 * sizeof(T);
  T* d = reg<T>(w, I.d);
  const T *a = reg<T>(w, I.a), *b = reg<T>(w, I.b);
  const u32 *c = reg<u32>(w, I.c), *e = reg<u32>(w, I.e);
  LANES(
      m, u32 pos = c[l] & 255; u32 len = e[l] & 255; T r = b[l];
      for (u32 k = 0; k < len && pos + k < W && k < W; k++) {
        T bit = T(1) << (pos + k);
        r = (r & ~bit) | ((a[l] >> k & 1) ? bit : T(0));
      } d[l] = r);
}
void lop3(Warp& w, const Ins& I, u32 m) {
  u32* d = reg<u32>(w, I.d);
  const u32 *a = reg<u32>(w, I.a), *b = reg<u32>(w, I.b), *c = reg<u32>(w, I.c);
  u32 lut = u32(I.imm);
  LANES(m, u32 r = 0; for (int k = 0; k < 8; k++) if (lut >> k & 1) r |=
                      ((k & 4) ? a[l] : ~a[l]) & ((k & 2) ? b[l] : ~b[l]) & ((k & 1) ? c[l] : ~c[l]);
        d[l] = r);
}
void funnel(Warp& w, const Ins& I, u32 m) {  // sub: bit 0 right, bit 1 clamp
  u32* d = reg<u32>(w, I.d);
  const u32 *a = reg<u32>(w, I.a), *b = reg<u32>(w, I.b), *c = reg<u32>(w, I.c);
  LANES(m, u32 n = (I.sub & 2) ? std::min(c[l], 32u) : c[l] & 31; u64 x = a[l] | u64(b[l]) << 32;
        d[l] = (I.sub & 1) ? u32(x >> n) : u32((x << n) >> 32));
}
template <class T>
void popcT(Warp& w, const Ins& I, u32 m) {
  u32* d = reg<u32>(w, I.d);
  const T* a = reg<T>(w, I.a);
  LANES(m, d[l] = __builtin_popcountll(u64(a[l])));
}
template <class T>
void clzT(Warp& w, const Ins& I, u32 m) {
  u32* d = reg<u32>(w, I.d);
  const T* a = reg<T>(w, I.a);
  LANES(m, d[l] = a[l] ? __builtin_clzll(u64(a[l])) - (64 - 8 * sizeof(T)) : 8 * sizeof(T));
}
struct BRev {
  template <class T>
  static inline T f(T a) {
    T r = 0;
    for (u32 k = 0; k < 8 * sizeof(T); k++) {
      r = T(r << 1) | (a & 1);
      a >>= 1;
    }
    return r;
  }
};
template <class T>
void bfind(Warp& w, const Ins& I, u32 m) {
  u32* d = reg<u32>(w, I.d);
  const T* a = reg<T>(w, I.a);
  LANES(m, T x = a[l]; if (std::is_signed<T>::value && x < 0) x = ~x;
        u64 u = typename std::make_unsigned<T>::type(x); d[l] = u ? 63 - __builtin_clzll(u) : FULL;
        if (I.sub && u) d[l] = 8 * sizeof(T) - 1 - d[l]);
}

// ----------------------------------------------------------------------------------------------------
// conversions
struct CSext32 {
  static inline s64 f(s32 a) { return a; }
};
struct CZext32 {
  static inline u64 f(u32 a) { return a; }
};
struct CLow {
  static inline u32 f(u64 a) { return u32(a); }
};
struct CBf {
  static inline float f(u16 a) { return bf2f(a); }
};
struct CHf {
  static inline float f(u16 a) { return h2f(a); }
};
struct CFd {
  static inline double f(float a) { return a; }
};
struct CS32f {
  static inline float f(s32 a) { return float(a); }
};
template <class D>
inline D satInt(double x, double lo, double hi, D least, D most) {
  return x <= lo ? least : x >= hi ? most : D(x);
}
u64 toInt(double x, Type t, bool fromDouble) {  // x is integral or NaN or infinite
  int n = sizeOf(t);
  if (x != x) return fromDouble || n == 8 ? 1ull << (8 * n - 1) : 0;
  switch (t) {
    case T_S8:
      return u64(s64(satInt<s64>(x, -128, 127, -128, 127)));
    case T_U8:
      return satInt<u64>(x, 0, 255, 0, 255);
    case T_S16:
      return u64(s64(satInt<s64>(x, -32768, 32767, -32768, 32767)));
    case T_U16:
      return satInt<u64>(x, 0, 65535, 0, 65535);
    case T_S32:
      return u64(satInt<s64>(x, -2147483648.0, 2147483647.0, INT32_MIN, INT32_MAX));
    case T_U32:
      return satInt<u64>(x, 0, 4294967295.0, 0, UINT32_MAX);
    case T_S64:
      return u64(satInt<s64>(x, -9223372036854775808.0, 9223372036854775808.0, INT64_MIN, INT64_MAX));
    default:
      return satInt<u64>(x, 0, 18446744073709551616.0, 0, UINT64_MAX);
  }
}
double roundTo(double x, int mode) {  // 0 none, 1 rni, 2 rzi, 3 rmi, 4 rpi
  switch (mode) {
    case 1:
      return std::nearbyint(x);
    case 2:
      return std::trunc(x);
    case 3:
      return std::floor(x);
    case 4:
      return std::ceil(x);
    default:
      return x;
  }
}
void rziS32(Warp& w, const Ins& I, u32 m) {
  s32* d = reg<s32>(w, I.d);
  const float* a = reg<float>(w, I.a);
  LANES(m, float x = a[l]; d[l] = x != x               ? 0
                                  : x >= 2147483648.0f ? INT32_MAX
                                  : x < -2147483648.0f ? INT32_MIN
                                                       : s32(x));
}
// Any conversion: I.t the destination's type, I.t2 the source's, I.sub the rounding to an integer, I.flag: 1
// ftz, 2 sat, 4 relu, 8 round to zero, 16 rna.
void cvtAny(Warp& w, const Ins& I, u32 m) {
  bool fs = isFloat(I.t2), fd = isFloat(I.t), z = I.flag & 1;
  for (u32 mm = m; mm; mm &= mm - 1) {
    int l = __builtin_ctz(mm);
    u64 raw = readReg(w, I.a, I.szA, l), out = 0;
    if (!fs && !fd) {
      u64 x = extend(raw, I.t2);
      if (I.flag & 2) {  // saturate
        __int128 v = isSigned(I.t2) ? __int128(s64(x)) : __int128(x);
        int n = 8 * sizeOf(I.t);
        __int128 lo = isSigned(I.t) ? -(__int128(1) << (n - 1)) : 0,
                 hi = isSigned(I.t) ? (__int128(1) << (n - 1)) - 1 : (__int128(1) << n) - 1;
        v = v < lo ? lo : v > hi ? hi : v;
        x = u64(v);
      }
      out = extend(x, I.t);
    } else if (fs && !fd) {
      double x = I.t2 == T_F32   ? double(z ? ftz(bits<float>(u32(raw))) : bits<float>(u32(raw)))
                 : I.t2 == T_F64 ? bits<double>(raw)
                 : I.t2 == T_F16 ? h2f(u16(raw))
                                 : bf2f(u16(raw));
      out = toInt(roundTo(x, I.sub), I.t, I.t2 == T_F64);
    } else if (!fs && fd) {
      u64 x = extend(raw, I.t2);
      bool s = isSigned(I.t2);
      if (I.flag & 8) fatal(w, I, "conversion with this rounding is not emulated");
      if (I.t == T_F64)
        out = bits<u64>(s ? double(s64(x)) : double(x));
      else if (I.t == T_F32)
        out = bits<u32>(s ? float(s64(x)) : float(x));
      else {
        double v = s ? double(s64(x)) : double(x);
        out = I.t == T_F16 ? d2h(v) : d2bf(v);
      }
    } else {
      double x = I.t2 == T_F32   ? double(bits<float>(u32(raw)))
                 : I.t2 == T_F64 ? bits<double>(raw)
                 : I.t2 == T_F16 ? h2f(u16(raw))
                                 : bf2f(u16(raw));
      if (z && I.t2 == T_F32) x = ftz(float(x));
      x = roundTo(x, I.sub);
      if (I.flag & 2) x = x != x ? 0 : x < 0 ? 0 : x > 1 ? 1 : x;
      if ((I.flag & 4) && !(x > 0) && x == x) x = 0;
      if (I.t == T_F64)
        out = bits<u64>(canon(x));
      else if (I.t == T_F32) {
        float f = float(x);
        if ((I.flag & 8) && std::isfinite(x) && std::fabs(double(f)) > std::fabs(x))
          f = bits<float>(bits<u32>(f) - 1);
        if (z) f = ftz(f);
        out = bits<u32>(canon(f));
      } else if (I.t == T_F16) {
        if (I.flag & 8) fatal(w, I, "conversion with this rounding is not emulated");
        out = d2h(x);
      } else if (I.t == T_BF16)
        out = (I.flag & 8) ? f2bf_rz(float(x)) : d2bf(x);
      else if (I.t == T_TF32) {
        u32 u = bits<u32>(float(x));
        if (I.flag & 16)
          out = rna_tf32(u);
        else if (I.flag & 8)
          out = u & 0xffffe000;
        else {
          out = (u & 0x7f800000) == 0x7f800000 ? u : (u + 0xfff + ((u >> 13) & 1)) & 0xffffe000;
        }
      }
    }
    writeReg(w, I.d, I.szD, l, out);
  }
}
void cvtX2(Warp& w, const Ins& I, u32 m) {  // two floats to a packed pair: a is the upper half
  u32* d = reg<u32>(w, I.d);
  const float *a = reg<float>(w, I.a), *b = reg<float>(w, I.b);
  bool relu = I.flag & 4;
  LANES(
      m, float x = a[l]; float y = b[l]; if (relu) {
        x = x < 0 ? 0 : x;
        y = y < 0 ? 0 : y;
      } u16 hi = I.t == T_F16X2 ? f2h(x)
                                         : (I.flag & 8) ? f2bf_rz(x)
                                                        : f2bf(x);
      u16 lo = I.t == T_F16X2 ? f2h(y)
               : (I.flag & 8) ? f2bf_rz(y)
                              : f2bf(y);
      d[l] = u32(hi) << 16 | lo);
}
// mov d, {a, b, ..} and mov {a, b, ..}, d: v[0] has the parts, vsz their bytes.
void pack(Warp& w, const Ins& I, u32 m) {
  const u32* v = &w.L->M->pool[I.v[0]];
  for (u32 mm = m; mm; mm &= mm - 1) {
    int l = __builtin_ctz(mm);
    u64 x = 0;
    for (int k = 0; k < I.nv[0]; k++) x |= readReg(w, v[k], I.vsz, l) << (8 * I.vsz * k);
    writeReg(w, I.d, I.szD, l, x);
  }
}
void unpack(Warp& w, const Ins& I, u32 m) {
  const u32* v = &w.L->M->pool[I.v[0]];
  for (u32 mm = m; mm; mm &= mm - 1) {
    int l = __builtin_ctz(mm);
    u64 x = readReg(w, I.a, I.szA, l);
    for (int k = 0; k < I.nv[0]; k++) writeReg(w, v[k], I.vsz, l, x >> (8 * I.vsz * k));
  }
}
void isShared(Warp& w, const Ins& I, u32 m) {
  const u64* a = reg<u64>(w, I.a);
  u32 r = 0;
  for (int l = 0; l < 32; l++) r |= u32((a[l] >> 48) == 1) << l;
  putPred(w, I.d, m, I.sub == S_SHARED ? r : ~r);
}
void cvta(Warp& w, const Ins& I,
          u32 m) {  // sub: 0 none, 1 shared to generic, 2 back, 3 local to generic, 4 back
  u64* d = reg<u64>(w, I.d);
  const u64* a = reg<u64>(w, I.a);
  LANES(m, d[l] = I.sub == 1   ? a[l] | GENERIC_SHARED
                  : I.sub == 2 ? a[l] & ~GENERIC_SHARED
                  : I.sub == 3 ? a[l] | GENERIC_LOCAL
                  : I.sub == 4 ? a[l] & ~GENERIC_LOCAL
                               : a[l]);
}
void readClock(Warp& w, const Ins& I, u32 m) {
  u64 t = w.L->tick;
  for (u32 mm = m; mm; mm &= mm - 1) writeReg(w, I.d, I.szD, __builtin_ctz(mm), t);
}

}  // namespace ptx
