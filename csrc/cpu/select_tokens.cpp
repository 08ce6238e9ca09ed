// select_tokens: the k best scores, in index order.
#include "cpu/common.h"
#include "cpu/select.h"

#include <torch/library.h>

namespace vitcop {
namespace {

constexpr const char* kOp = "select_tokens";

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
      std::vector<uint32_t> ranks(static_cast<size_t>(n));
      for (int64_t b = begin; b < end; ++b)
        select_row(mutable_data<int64_t>(index) + b * k, data<T>(scores) + b * batch_stride(scores, 2),
                   scores.stride(-1), n, k, largest, ranks.data());
    });
  });
  return index;
}

}  // namespace

TORCH_LIBRARY_IMPL(vitcop, CPU, m) {
  m.impl("select_tokens", select_tokens);
}

}  // namespace vitcop
