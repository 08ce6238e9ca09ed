// segment_mean (Eq. 6): the mean of each segment of tokens. A segment of one is copied.
#include "cpu/common.h"
#include "cpu/rows.h"
#include "cpu/segments.h"

#include <torch/library.h>

namespace vitcop {
namespace {

constexpr const char* kOp = "segment_mean";
constexpr int64_t kSlab = 512;  // columns of one task; segments differ in length, columns do not

template <class T>
void exact_mean(T* y, const T* x, int64_t row_stride, const int64_t* members, int64_t count, const T* added,
                int64_t width) {
  for (int64_t c = 0; c < width; ++c) {
    double sum = 0;
    for (int64_t m = 0; m < count; ++m) sum += to_double(x[members[m] * row_stride + c]);
    y[c] = from_double<T>(sum / static_cast<double>(count) + (added ? to_double(added[c]) : 0.0));
  }
}

// y [B, S, C] contiguous.
template <class T>
void merge_segments(T* y, const T* x, int64_t batch_stride, int64_t row_stride, int64_t width,
                    const Segments& segments) {
  const int64_t slabs = (width + kSlab - 1) / kSlab;
  const auto& mean = rows_of<T>().mean;
  at::parallel_for(
      0, segments.batch * slabs, grain(segments.num_tokens * kSlab), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t b = i / slabs, column = i % slabs * kSlab, columns = std::min(kSlab, width - column);
          const int64_t* members = segments.perm + b * segments.num_tokens;
          const int64_t* offsets = segments.offsets + b * (segments.count + 1);
          const T* from = x + b * batch_stride + column;
          for (int64_t s = 0; s < segments.count; ++s) {
            const int64_t segment = b * segments.count + s, count = offsets[s + 1] - offsets[s];
            const int64_t* of = members + offsets[s];
            T* to = y + segment * width + column;
            const T* added =
                segments.adds_anchor(segment) ? from + segments.anchors[segment] * row_stride : nullptr;
            if (count == 0 && !added) {
              std::memset(to, 0, columns * sizeof(T));
            } else if (count == 0) {
              std::memcpy(to, added, columns * sizeof(T));
            } else if (count == 1 && !added) {
              std::memcpy(to, from + of[0] * row_stride, columns * sizeof(T));
            } else if (!mean(to, from, row_stride, of, count, added, columns)) {
              exact_mean(to, from, row_stride, of, count, added, columns);
            }
          }
        }
      });
}

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
    merge_segments(mutable_data<T>(y), data<T>(rows), batch_stride(rows, 3), rows.stride(-2), x.size(-1),
                   segments);
  });
  return y;
}

TORCH_LIBRARY_IMPL(vitcop, CPU, m) {
  m.impl("segment_mean", segment_mean);
}

}  // namespace vitcop
