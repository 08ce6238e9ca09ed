// segment_mean (Eq. 6): the mean of each segment of tokens. A segment of one is copied.
#include "cpu/common.h"
#include "cpu/means.h"
#include "cpu/segments.h"

#include <torch/library.h>

namespace vitcop {
namespace {

constexpr const char* kOp = "segment_mean";

Tensor segment_mean(const Tensor& x, const Tensor& perm, const Tensor& offsets,
                    const std::optional<Tensor>& anchors, const std::optional<Tensor>& merged,
                    std::string_view merge) {
  check_segments(kOp, x, perm, offsets, anchors, merged, merge);
  if (x.scalar_type() == at::kDouble)
    return call_reference(kOp, x, perm, offsets, anchors, merged, std::string(merge))[0].toTensor();

  return merge_segments(x, Segments(kOp, perm, offsets, anchors, merged, merge));
}

}  // namespace

Tensor merge_segments(const Tensor& x, const Segments& segments) {
  const Tensor rows = with_contiguous_rows(x);
  Tensor y = empty(lead_and(x, 2, {segments.count, x.size(-1)}), x.scalar_type());
  if (y.numel() == 0) return y;
  dispatch_element(x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    merge_samples(mutable_data<T>(y), data<T>(rows), segments.batch, batch_stride(rows, 3), rows.stride(-2),
                  x.size(-1), segments.num_tokens, [&](int64_t b) { return segments.of_sample(b); });
  });
  return y;
}

TORCH_LIBRARY_IMPL(vitcop, CPU, m) {
  m.impl("segment_mean", segment_mean);
}

}  // namespace vitcop
