// segment_mean_backward: the gradient of Eq. 6. A token sums, in ascending order, what the segments it went
// to got.
#include "cpu/common.h"
#include "cpu/rows.h"
#include "cpu/segments.h"

#include <torch/library.h>

namespace vitcop {
namespace {

constexpr const char* kOp = "segment_mean_backward";
constexpr int64_t kSlab = 512;  // columns summed at a time

void check(const Tensor& grad, const Tensor& perm, const Tensor& offsets,
           const std::optional<Tensor>& anchors, const std::optional<Tensor>& merged,
           std::string_view merge) {
  check_floating(kOp, "grad", grad);
  check_dims(kOp, "grad", grad, 2, 3, "[B, S, C] or [S, C]");
  check_dtype(kOp, "perm", perm, at::kLong);
  check_same_device(kOp, "perm", perm, "grad", grad);
  check_dims(kOp, "perm", perm, grad.dim() - 1, grad.dim() - 1, "[B, N] or [N], as grad");
  check_at_least(kOp, "perm.shape[-1] (tokens)", perm.size(-1), 1);
  check_shape(kOp, "perm", perm, lead_and(grad, 2, {perm.size(-1)}));
  check_dtype(kOp, "offsets", offsets, at::kLong);
  check_same_device(kOp, "offsets", offsets, "grad", grad);
  check_shape(kOp, "offsets", offsets, lead_and(grad, 2, {one_more(grad.size(-2))}));
  check_anchors(kOp, merge, anchors, merged, lead_and(grad, 1, {}), "grad", grad);
}

// For each token of a sample the segments that it went to, as lists in one array.
class Lists {
 public:
  explicit Lists(int64_t tokens) : end_(tokens + 1, 0) {}
  void count(int64_t token) { ++end_[token + 1]; }
  void reserve() {
    for (size_t i = 1; i < end_.size(); ++i) end_[i] += end_[i - 1];
    items_.resize(end_.back());
    next_.assign(end_.begin(), end_.end() - 1);
  }
  void add(int64_t token, int64_t segment) { items_[next_[token]++] = segment; }
  const int64_t* begin(int64_t token) const { return items_.data() + end_[token]; }
  const int64_t* end(int64_t token) const { return items_.data() + end_[token + 1]; }

 private:
  std::vector<int64_t> end_, next_, items_;
};

template <class T>
void sum_row(T* out, const T* grad, int64_t row_stride, int64_t width, const int64_t* offsets,
             const Lists& shares, const Lists& added, int64_t token) {
  if (shares.end(token) - shares.begin(token) == 1 && added.end(token) == added.begin(token)) {
    const int64_t s = *shares.begin(token), length = offsets[s + 1] - offsets[s];
    const T* from = grad + s * row_stride;
    if (length == 1) {
      std::memcpy(out, from, width * sizeof(T));
      return;
    }
    // 53 >= 2 * 24 + 2 bits: the quotient of two floats is that of doubles, rounded to float.
    if (length <= 1 << 24) return rows_of<T>().divide(out, from, static_cast<float>(length), width);
  }
  std::array<double, kSlab> sum;
  for (int64_t column = 0; column < width; column += kSlab) {
    const int64_t columns = std::min(kSlab, width - column);
    std::fill_n(sum.begin(), columns, 0.0);
    for (const int64_t* s = shares.begin(token); s != shares.end(token); ++s) {
      const double length = static_cast<double>(offsets[*s + 1] - offsets[*s]);
      const T* from = grad + *s * row_stride + column;
      for (int64_t c = 0; c < columns; ++c) sum[c] += to_double(from[c]) / length;
    }
    for (const int64_t* s = added.begin(token); s != added.end(token); ++s) {
      const T* from = grad + *s * row_stride + column;
      for (int64_t c = 0; c < columns; ++c) sum[c] += to_double(from[c]);
    }
    for (int64_t c = 0; c < columns; ++c) out[column + c] = from_double<T>(sum[c]);
  }
}

template <class T>
void sum_sample(T* out, const T* grad, int64_t row_stride, int64_t width, const Segments& segments,
                int64_t b) {
  const int64_t* perm = segments.perm + b * segments.num_tokens;
  const int64_t* offsets = segments.offsets + b * (segments.count + 1);
  Lists shares(segments.num_tokens), added(segments.num_tokens);
  const auto each = [&](auto&& share, auto&& add) {
    for (int64_t s = 0; s < segments.count; ++s) {
      for (int64_t i = offsets[s]; i < offsets[s + 1]; ++i) share(perm[i], s);
      const int64_t at = b * segments.count + s;
      if (segments.adds_anchor(at)) add(segments.anchors[at], s);
    }
  };
  each([&](int64_t token, int64_t) { shares.count(token); },
       [&](int64_t token, int64_t) { added.count(token); });
  shares.reserve();
  added.reserve();
  each([&](int64_t token, int64_t s) { shares.add(token, s); },
       [&](int64_t token, int64_t s) { added.add(token, s); });
  at::parallel_for(0, segments.num_tokens, grain(2 * width), [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token)
      sum_row(out + token * width, grad, row_stride, width, offsets, shares, added, token);
  });
}

Tensor segment_mean_backward(const Tensor& grad, const Tensor& perm, const Tensor& offsets,
                             const std::optional<Tensor>& anchors, const std::optional<Tensor>& merged,
                             std::string_view merge) {
  check(grad, perm, offsets, anchors, merged, merge);
  if (grad.scalar_type() == at::kDouble)
    return call_reference(kOp, grad, perm, offsets, anchors, merged, std::string(merge))[0].toTensor();

  const Tensor rows = with_contiguous_rows(grad);
  const Segments segments(kOp, perm, offsets, anchors, merged, merge);
  const int64_t width = grad.size(-1);
  Tensor out = empty(lead_and(perm, 0, {width}), grad.scalar_type());
  if (out.numel() == 0) return out;
  dispatch_element(grad.scalar_type(), [&](auto element) {
    using T = decltype(element);
    for (int64_t b = 0; b < segments.batch; ++b)
      sum_sample(mutable_data<T>(out) + b * segments.num_tokens * width,
                 data<T>(rows) + b * batch_stride(rows, 3), rows.stride(-2), width, segments, b);
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(vitcop, CPU, m) {
  m.impl("segment_mean_backward", segment_mean_backward);
}

}  // namespace vitcop
