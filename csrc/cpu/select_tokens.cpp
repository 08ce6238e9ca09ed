// select_tokens: the k best scores, in index order.
#include "cpu/common.h"
#include "cpu/order.h"

#include <torch/library.h>

namespace vitcop {
namespace {

constexpr const char* kOp = "select_tokens";

struct Threshold {
  uint32_t rank;  // of the k-th best score
  int64_t ties;   // how many scores of exactly that rank are among the k best
};

// Radix select: a histogram of each byte from the top.
Threshold kth_best(const uint32_t* ranks, int64_t n, int64_t k) {
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

template <class T>
void select_row(int64_t* out, const T* scores, int64_t stride, int64_t n, int64_t k, bool largest) {
  std::vector<uint32_t> ranks(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) ranks[i] = rank_of(scores[i * stride], largest);
  Threshold last = kth_best(ranks.data(), n, k);
  for (int64_t i = 0, taken = 0; taken < k; ++i) {
    if (ranks[i] < last.rank || (ranks[i] == last.rank && last.ties-- > 0)) out[taken++] = i;
  }
}

Tensor select_tokens(const Tensor& scores, int64_t k, bool largest) {
  check_floating(kOp, "scores", scores);
  check_dims(kOp, "scores", scores, 1, 2, "[B, N] or [N]");
  check_in_range(kOp, "k", k, 0, scores.size(-1));
  if (scores.scalar_type() == at::kDouble) return call_reference(kOp, scores, k, largest)[0].toTensor();

  const int64_t batch = batch_of(scores, 2), n = scores.size(-1);
  Tensor index = empty(lead_and(scores, 1, {k}), at::kLong);
  if (index.numel() == 0) return index;
  dispatch_element(scores.scalar_type(), [&](auto element) {
    using T = decltype(element);
    at::parallel_for(0, batch, grain(8 * n), [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b)
        select_row(mutable_data<int64_t>(index) + b * k, data<T>(scores) + b * batch_stride(scores, 2),
                   scores.stride(-1), n, k, largest);
    });
  });
  return index;
}

}  // namespace

TORCH_LIBRARY_IMPL(vitcop, CPU, m) {
  m.impl("select_tokens", select_tokens);
}

}  // namespace vitcop
