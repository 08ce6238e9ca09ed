// The density of a token from its row of q, in the log domain.
#pragma once

#include "cpu/vic/simd.h"

namespace vitcop::vic::VITCOP_VIC_NS {

// exp(x) = scale + scale * rest for x <= 0 (Cephes' polynomial): kept apart until they meet in float64, since
// flat densities differ in the last digits of terms close to 1. Exactly 1 + 0 at 0, about 0 below -80.
struct Exp {
  V scale, rest;
};
VITCOP_INLINE Exp exp_negative(V x) {
  x = max(x, splat(-80.0f));
  const V shift = splat(0x1.8p23f);
  const V shifted = fma(x, splat(1.44269504088896341f), shift), n = shifted - shift;
  V r = fma(n, splat(-0.693359375f), x);
  r = fma(n, splat(2.12194440e-4f), r);
  V p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  return {bits((bits(shifted) << 23) + bits(splat(1))), fma(p, r * r, r)};
}

// d^2 up to dist_scale^2 and eps.
VITCOP_INLINE V squared(V q, bool cosine) {
  return cosine ? q * q * 0.25f : q;
}
VITCOP_INLINE float squared(float q, bool cosine) {
  return cosine ? q * q * 0.25f : q;
}

// log sum exp(-d^2/d_c^2) around the nearest neighbour. Terms are rounded to one quantum and what that leaves
// to a finer one, so both float64 sums are exact and do not depend on the order of the tokens: equal
// distances give equal densities.
inline Density gaussian(const float* q, int64_t n_pad, const DensityArgs& a) {
  float base = -static_cast<float>(a.eps);  // the own term, d = 0, is the largest
  double shift = 0;
  if (!a.self) {
    V nearest = splat(__builtin_inff());
    for (int64_t j = 0; j < n_pad; j += W) nearest = min(load(q + j), nearest);
    const float q_min = least(nearest);
    if (q_min == __builtin_inff()) return {-__builtin_inf(), 0};
    base = squared(q_min, a.cosine);
    shift = (base + a.eps) * a.inverse;
  }
  const V rate = splat(a.inverse < 3e38 ? static_cast<float>(a.inverse) : 3e38f);
  const D magic = D{} + a.magic, magic2 = D{} + a.magic2;
  D total[2] = {}, rest[2] = {};
  for (int64_t j = 0; j < n_pad; j += W) {
    const Exp e = exp_negative((base - squared(load(q + j), a.cosine)) * rate);
    const D scale[2] = {low(e.scale), high(e.scale)};
    const D term[2] = {low(e.rest) * scale[0] + scale[0], high(e.rest) * scale[1] + scale[1]};
    for (int h = 0; h < 2; ++h) {
      const D rounded = (term[h] + magic) - magic;
      total[h] += rounded;
      rest[h] += (term[h] - rounded + magic2) - magic2;
    }
  }
  total[0] += total[1];
  rest[0] += rest[1];
  double s = a.self ? 1 : 0, s2 = 0;
  for (int l = 0; l < W / 2; ++l) {
    s += total[0][l];
    s2 += rest[0][l];
  }
  s += s2;
  const double log_rho = __builtin_log(s) - shift;
  return {log_rho, static_cast<float>(a.self ? s : __builtin_exp(log_rho))};
}

inline void sift_down(float* heap, int64_t size, int64_t i) {
  for (;;) {
    int64_t child = 2 * i + 1;
    if (child >= size) return;
    if (child + 1 < size && heap[child + 1] > heap[child]) ++child;
    if (heap[child] <= heap[i]) return;
    const float x = heap[i];
    heap[i] = heap[child];
    heap[child] = x;
    i = child;
  }
}

// -mean of the k smallest d^2: a max-heap keeps the k smallest q, and most vectors have none.
inline Density knn(const float* q, int64_t n_pad, const DensityArgs& a, float* heap) {
  for (int64_t i = 0; i < a.k; ++i) heap[i] = __builtin_inff();
  for (int64_t j = 0; a.k > 0 && j < n_pad; j += W) {
    for (uint32_t lanes = less(load(q + j), splat(heap[0])); lanes; lanes &= lanes - 1) {
      const float x = q[j + __builtin_ctz(lanes)];
      if (!(x < heap[0])) continue;
      heap[0] = x;
      sift_down(heap, a.k, 0);
    }
  }
  for (int64_t size = a.k - 1; size > 0; --size) {  // ascending, so that equal sets give equal sums
    const float x = heap[0];
    heap[0] = heap[size];
    heap[size] = x;
    sift_down(heap, size, 0);
  }
  double total = 0;
  int64_t count = a.self;
  for (int64_t i = 0; i < a.k && heap[i] < __builtin_inff(); ++i, ++count) {
    const double x = heap[i];
    total += ((a.cosine ? x * x * 0.25 : x) + a.eps) * a.scale2;
  }
  if (count == 0) return {-__builtin_inf(), 0};
  const double log_rho = -total / count;
  return {log_rho, static_cast<float>(__builtin_exp(log_rho))};
}

inline Density density(const float* q, int64_t n_pad, const DensityArgs& a, float* heap) {
  return a.knn ? knn(q, n_pad, a, heap) : gaussian(q, n_pad, a);
}

inline float widest(const float* q, int64_t n_pad) {
  const V none = splat(-1);
  V most = none;
  for (int64_t j = 0; j < n_pad; j += W) {
    const V x = load(q + j);
    most = max(x < __builtin_inff() ? x : none, most);
  }
  return -least(-most);
}

}  // namespace vitcop::vic::VITCOP_VIC_NS
