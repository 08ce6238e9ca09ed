// The k best scores of a row, in index order: what select_tokens and prune_sequence share.
#pragma once

#include "cpu/common.h"
#include "cpu/order.h"

namespace vitcop {

struct Threshold {
  uint32_t rank;  // of the k-th best score
  int64_t ties;   // how many scores of exactly that rank are among the k best
};

// Radix select: a histogram of each byte from the top.
inline Threshold kth_best(const uint32_t* ranks, int64_t n, int64_t k) {
  uint32_t prefix = 0, known = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    std::array<int64_t, 256> count{};
    for (int64_t i = 0; i < n; ++i)
      if ((ranks[i] & known) == prefix) ++count[(ranks[i] >> shift) & 0xff];
    uint32_t byte = 0;
    while (k > count[byte]) k -= count[byte++];
    prefix |= byte << shift;
    known |= 0xffu << shift;
  }
  return {prefix, k};
}

// The k >= 1 best of n scores; `ranks` has room for n.
template <class T>
void select_row(int64_t* out, const T* scores, int64_t stride, int64_t n, int64_t k, bool largest,
                uint32_t* ranks) {
  for (int64_t i = 0; i < n; ++i) ranks[i] = rank_of(scores[i * stride], largest);
  Threshold last = kth_best(ranks, n, k);
  for (int64_t i = 0, taken = 0; taken < k; ++i) {
    if (ranks[i] < last.rank || (ranks[i] == last.rank && last.ties-- > 0)) out[taken++] = i;
  }
}

}  // namespace vitcop
