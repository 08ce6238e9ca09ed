// segment_mean (Eq. 6): the mean of each segment of tokens. A segment of one is copied.
#include "cpu/common.h"
#include "cpu/rows.h"

#include <torch/library.h>

namespace vitcop {
namespace {

constexpr const char* kOp = "segment_mean";
constexpr int64_t kSlab = 512;  // columns of one task; segments differ in length, columns do not

void check(const Tensor& x, const Tensor& perm, const Tensor& offsets, const std::optional<Tensor>& anchors,
           const std::optional<Tensor>& merged, std::string_view merge) {
  check_floating(kOp, "x", x);
  check_dims(kOp, "x", x, 2, 3, "[B, N, C] or [N, C]");
  check_at_least(kOp, "x.shape[-2] (tokens)", x.size(-2), 1);
  check_dtype(kOp, "perm", perm, at::kLong);
  check_same_device(kOp, "perm", perm, "x", x);
  check_shape(kOp, "perm", perm, lead_and(x, 1, {}));
  check_dtype(kOp, "offsets", offsets, at::kLong);
  check_same_device(kOp, "offsets", offsets, "x", x);
  check_dims(kOp, "offsets", offsets, perm.dim(), perm.dim(), "[B, S+1] or [S+1], as perm");
  check_at_least(kOp, "offsets.shape[-1] (S+1)", offsets.size(-1), 1);
  check_shape(kOp, "offsets", offsets, lead_and(perm, 1, {offsets.size(-1)}));
  check_one_of(kOp, "merge", merge, {"mean", "anchor_plus_mean"});
  const auto check_optional = [&](const char* name, const std::optional<Tensor>& t, at::ScalarType dtype) {
    if (!t) {
      TORCH_CHECK_VALUE(merge != "anchor_plus_mean", kOp, ": ", name,
                        ": expected a tensor with merge=\"anchor_plus_mean\", got None");
      return;
    }
    check_dtype(kOp, name, *t, dtype);
    check_same_device(kOp, name, *t, "x", x);
    check_shape(kOp, name, *t, lead_and(perm, 1, {offsets.size(-1) - 1}));
  };
  check_optional("anchors", anchors, at::kLong);
  check_optional("merged", merged, at::kBool);
}

// The plan of one call; anchors and merged are null unless anchors are added.
struct Plan {
  int64_t batch, num_tokens, num_segments;
  const int64_t* perm;
  const int64_t* offsets;
  const int64_t* anchors;
  const bool* merged;

  bool adds_anchor(int64_t segment) const { return merged && merged[segment]; }

  void check_indices() const {
    const auto check_index = [&](const char* argument, int64_t index) {
      TORCH_CHECK_VALUE(index >= 0 && index < num_tokens, kOp, ": ", argument, ": expected indices in [0, ",
                        num_tokens, "), got ", index);
    };
    for (int64_t i = 0; i < batch * num_tokens; ++i) check_index("perm", perm[i]);
    for (int64_t b = 0; b < batch; ++b) {
      const int64_t* o = offsets + b * (num_segments + 1);
      for (int64_t s = 0; s <= num_segments; ++s)
        TORCH_CHECK_VALUE(o[s] >= (s ? o[s - 1] : 0) && o[s] <= num_tokens, kOp,
                          ": offsets: expected ascending values in [0, ", num_tokens, "], got ", o[s], " at ",
                          s);
    }
    for (int64_t s = 0; s < batch * num_segments; ++s)
      if (adds_anchor(s)) check_index("anchors", anchors[s]);
  }
};

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
                    const Plan& plan) {
  const int64_t slabs = (width + kSlab - 1) / kSlab;
  const auto& mean = rows_of<T>().mean;
  at::parallel_for(0, plan.batch * slabs, grain(plan.num_tokens * kSlab), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / slabs, column = i % slabs * kSlab, columns = std::min(kSlab, width - column);
      const int64_t* members = plan.perm + b * plan.num_tokens;
      const int64_t* offsets = plan.offsets + b * (plan.num_segments + 1);
      const T* from = x + b * batch_stride + column;
      for (int64_t s = 0; s < plan.num_segments; ++s) {
        const int64_t segment = b * plan.num_segments + s, count = offsets[s + 1] - offsets[s];
        const int64_t* of = members + offsets[s];
        T* to = y + segment * width + column;
        const T* added = plan.adds_anchor(segment) ? from + plan.anchors[segment] * row_stride : nullptr;
        if (count == 0 && !added) {
          std::memset(to, 0, columns * sizeof(T));
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
  check(x, perm, offsets, anchors, merged, merge);
  if (x.scalar_type() == at::kDouble)
    return call_reference(kOp, x, perm, offsets, anchors, merged, std::string(merge))[0].toTensor();

  const bool add = merge == "anchor_plus_mean";
  const Tensor rows = with_contiguous_rows(x), members = perm.contiguous(), bounds = offsets.contiguous();
  const Tensor anchor = add ? anchors->contiguous() : Tensor(),
               is_merged = add ? merged->contiguous() : Tensor();
  const Plan plan{.batch = batch_of(x, 3),
                  .num_tokens = x.size(-2),
                  .num_segments = offsets.size(-1) - 1,
                  .perm = data<int64_t>(members),
                  .offsets = data<int64_t>(bounds),
                  .anchors = add ? data<int64_t>(anchor) : nullptr,
                  .merged = add ? data<bool>(is_merged) : nullptr};
  plan.check_indices();
  Tensor y = empty(lead_and(x, 2, {plan.num_segments, x.size(-1)}), x.scalar_type());
  dispatch_element(x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    merge_segments(mutable_data<T>(y), data<T>(rows), batch_stride(rows, 3), rows.stride(-2), x.size(-1),
                   plan);
  });
  return y;
}

}  // namespace

TORCH_LIBRARY_IMPL(vitcop, CPU, m) {
  m.impl("segment_mean", segment_mean);
}

}  // namespace vitcop
