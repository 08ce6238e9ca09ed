// The nearest denser token from a row of q.
#pragma once

#include "cpu/vic/simd.h"

namespace vitcop::vic::VITCOP_VIC_NS {

// A bit for each of tokens [j, j + W) within tau of token i. NaN is not near.
inline uint32_t within(const ParentArgs& a, int64_t n_pad, int64_t i, int64_t j) {
  D gap2[2] = {};
  for (int64_t p = 0; p < a.dims; ++p) {
    const double* place = a.places + p * n_pad;
    for (int h = 0; h < 2; ++h) {
      const D gap = load(place + j + h * (W / 2)) - place[i];
      gap2[h] += gap * gap;
    }
  }
  const D tau2 = D{} + a.tau2;
  return at_most(gap2[0], tau2) | at_most(gap2[1], tau2) << (W / 2);
}

// Lowest q, then lowest index, over denser tokens near i. The spatial test is only for tokens that would win
// otherwise.
inline Nearest parent(const float* q, int64_t n_pad, int64_t i, int32_t limit, const ParentArgs& a) {
  Nearest best{__builtin_inff(), -1};
  const I bound = I{} + limit;
  for (int64_t j = 0; j < n_pad; j += W) {
    I key;
    __builtin_memcpy(&key, a.key + j, sizeof key);
    uint32_t lanes = less(load(q + j), splat(best.q)) & less(key, bound);
    if (!lanes) continue;
    if (a.places) lanes &= within(a, n_pad, i, j);
    for (; lanes; lanes &= lanes - 1) {
      const int64_t at = j + __builtin_ctz(lanes);
      if (q[at] < best.q) best = {q[at], static_cast<int32_t>(at)};
    }
  }
  return best;
}

}  // namespace vitcop::vic::VITCOP_VIC_NS
