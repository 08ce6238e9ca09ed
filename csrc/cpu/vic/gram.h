// q_ij = |x_i - x_j|^2, a tile at a time: a packed Gram product, then repair where it cancels.
//
// Error. Each dot product is a sum over blocks of 256 words in one fixed order, the same for every pair, so
// q_ij = q_ji and duplicates agree to the bit about every third token. Its rounding error stays below 260 *
// 2^-24 * |x||y| and behaves like a random walk: about 2^-22 * |x||y|. A q below kRepair * (|x|^2 + |y|^2) is
// taken again from differences (relative error below (d / 64 + 12) * 2^-24). So the relative error of q is
// about 1e-6 on ordinary tokens, and 2.2e-5 was the most ever measured (just above the threshold).
#pragma once

#include "cpu/vic/rows.h"

namespace vitcop::vic::VITCOP_VIC_NS {

constexpr float kRepair = 1.0f / 32;
constexpr int kTilePanels = kBlockRows / W;

// c += a b^T over `count` words: MR rows of one panel by N panels.
template <int N>
VITCOP_INLINE void product(const float* a, const float* const (&b)[NV], int64_t count, bool first, float* c,
                           int64_t ldc) {
  V acc[MR][N] = {};
  for (int64_t k = 0; k < count; ++k) {
    V v[N];
#pragma GCC unroll 3
    for (int n = 0; n < N; ++n) v[n] = load(b[n] + k * W);
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
      const V x = splat(a[k * W + r]);
#pragma GCC unroll 3
      for (int n = 0; n < N; ++n) acc[r][n] = madd(x, v[n], acc[r][n]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 3
    for (int n = 0; n < N; ++n) {
      float* at = c + r * ldc + n * W;
      store(at, first ? acc[r][n] : load(at) + acc[r][n]);
    }
  }
}

// The W x W block of panels (ip, jp): x.y in, q out, repaired.
template <class T>
bool finish(const Gram& g, int64_t ip, int64_t jp, const float* c, int64_t ldc, V (&q)[W]) {
  const V other = load(g.norm + jp * W);
  bool beyond = false;
  for (int r = 0; r < W; ++r) {
    const int64_t i = ip * W + r;
    const V dot = load(c + r * ldc), both = splat(g.norm[i]) + other;
    V d = both - (dot + dot);
    uint32_t near = less(d, max(both * kRepair, splat(kTiny)));
    if (ip == jp) near &= ~(1u << r);
    if (near) [[unlikely]] {
      float x[W];
      store(x, d);
      for (; near; near &= near - 1) {
        const int l = __builtin_ctz(near);
        x[l] = direct<T>(g.tokens, i, jp * W + l);
        beyond |= x[l] != x[l];
      }
      d = load(x);
    }
    if (ip == jp) d[r] = __builtin_inff();
    q[r] = d;
  }
  return beyond;
}

template <class T>
bool tile(const Gram& g, int64_t ip0, int64_t ip1, int64_t jp0, int64_t jp1, float* out, int64_t row0,
          int64_t ld, bool mirror) {
  alignas(64) float c[kBlockRows * kBlockRows];
  const int64_t ldc = (jp1 - jp0) * W;
  for (int64_t k = 0; k < g.words; k += kBlockWords) {
    const int64_t count = g.words - k < kBlockWords ? g.words - k : kBlockWords;
    for (int64_t group = jp0; group < jp1; group += NV) {
      const int64_t end = group + NV < jp1 ? group + NV : jp1;
      for (int64_t ip = ip0; ip < ip1; ++ip) {
        const int64_t jp = mirror && ip > group ? ip : group;
        if (jp >= end) continue;
        const float* b[NV];
        for (int n = 0; n < NV; ++n) b[n] = g.packed + (jp + n < end ? jp + n : jp) * g.panel_size + k * W;
        const float* a = g.packed + ip * g.panel_size + k * W;
        for (int r = 0; r < W; r += MR) {
          float* at = c + ((ip - ip0) * W + r) * ldc + (jp - jp0) * W;
          if (end - jp == 1) product<1>(a + r, b, count, k == 0, at, ldc);
          if (end - jp == 2) product<2>(a + r, b, count, k == 0, at, ldc);
          if constexpr (NV > 2)
            if (end - jp == 3) product<3>(a + r, b, count, k == 0, at, ldc);
        }
      }
    }
  }
  if (g.words == 0)
    for (float& x : c) x = 0;

  bool beyond = false;
  for (int64_t ip = ip0; ip < ip1; ++ip) {
    for (int64_t jp = mirror && ip > jp0 ? ip : jp0; jp < jp1; ++jp) {
      V q[W];
      beyond |= finish<T>(g, ip, jp, c + (ip - ip0) * W * ldc + (jp - jp0) * W, ldc, q);
      for (int r = 0; r < W; ++r) store(out + (ip * W + r - row0) * ld + jp * W, q[r]);
      if (mirror && ip != jp) {
        transpose(q);
        for (int r = 0; r < W; ++r) store(out + (jp * W + r - row0) * ld + ip * W, q[r]);
      }
    }
  }
  return beyond;
}

}  // namespace vitcop::vic::VITCOP_VIC_NS
