// The order of scores that every op shares: NaN is worst, -0.0 ties with 0.0, ties go to the lower index.
#pragma once

#include "cpu/common.h"

#include <cstring>

namespace vitcop {

// An unsigned integer that is smaller for a better score, the same for scores that tie.
inline uint32_t rank_of(float score, bool largest) {
  if (score != score) return UINT32_MAX;
  score += 0.0f;  // -0.0 becomes 0.0
  uint32_t bits;
  std::memcpy(&bits, &score, sizeof(bits));
  bits = bits >> 31 ? ~bits : bits | 0x80000000u;
  return largest ? ~bits : bits;
}

template <class T>
uint32_t rank_of(T score, bool largest) {
  return rank_of(static_cast<float>(to_double(score)), largest);
}

}  // namespace vitcop
