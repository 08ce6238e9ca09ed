// The segments of tokens that segment_mean, its gradient and compact_sequence share.
#pragma once

#include "cpu/common.h"

namespace vitcop {

// `merge`, and the anchors and merged flags that "anchor_plus_mean" needs.
inline void check_anchors(const char* op, std::string_view merge, const std::optional<Tensor>& anchors,
                          const std::optional<Tensor>& merged, at::IntArrayRef shape, const char* other,
                          const Tensor& model) {
  check_one_of(op, "merge", merge, {"mean", "anchor_plus_mean"});
  const auto check_optional = [&](const char* name, const std::optional<Tensor>& t, at::ScalarType dtype) {
    if (!t) {
      TORCH_CHECK_VALUE(merge != "anchor_plus_mean", op, ": ", name,
                        ": expected a tensor with merge=\"anchor_plus_mean\", got None");
      return;
    }
    check_dtype(op, name, *t, dtype);
    check_same_device(op, name, *t, other, model);
    check_shape(op, name, *t, shape);
  };
  check_optional("anchors", anchors, at::kLong);
  check_optional("merged", merged, at::kBool);
}

inline void check_segments(const char* op, const Tensor& x, const Tensor& perm, const Tensor& offsets,
                           const std::optional<Tensor>& anchors, const std::optional<Tensor>& merged,
                           std::string_view merge) {
  check_floating(op, "x", x);
  check_dims(op, "x", x, 2, 3, "[B, N, C] or [N, C]");
  check_at_least(op, "x.shape[-2] (tokens)", x.size(-2), 1);
  check_dtype(op, "perm", perm, at::kLong);
  check_same_device(op, "perm", perm, "x", x);
  check_shape(op, "perm", perm, lead_and(x, 1, {}));
  check_dtype(op, "offsets", offsets, at::kLong);
  check_same_device(op, "offsets", offsets, "x", x);
  check_dims(op, "offsets", offsets, perm.dim(), perm.dim(), "[B, S+1] or [S+1], as perm");
  check_at_least(op, "offsets.shape[-1] (S+1)", offsets.size(-1), 1);
  check_shape(op, "offsets", offsets, lead_and(perm, 1, {offsets.size(-1)}));
  check_anchors(op, merge, anchors, merged, lead_and(perm, 1, {offsets.size(-1) - 1}), "x", x);
}

// The segments of one sample.
struct SampleSegments {
  const int64_t* perm;
  const int64_t* offsets;
  int64_t count;
  const int64_t* anchors = nullptr;
  const bool* merged = nullptr;  // null: no anchor is added

  int64_t length(int64_t s) const { return offsets[s + 1] - offsets[s]; }
  bool adds_anchor(int64_t s) const { return merged && merged[s]; }
  bool copies(int64_t s) const { return length(s) == 1 && !adds_anchor(s); }
};

// The plan of one call, its indices checked. Anchors and merged flags are looked at where anchors are added.
class Segments {
 public:
  Segments(const char* op, const Tensor& perm_tensor, const Tensor& offsets_tensor,
           const std::optional<Tensor>& anchors_tensor, const std::optional<Tensor>& merged_tensor,
           std::string_view merge)
      : batch(batch_of(perm_tensor, 2)),
        num_tokens(perm_tensor.size(-1)),
        count(offsets_tensor.size(-1) - 1),
        perm_(perm_tensor.contiguous()),
        offsets_(offsets_tensor.contiguous()),
        perm(data<int64_t>(perm_)),
        offsets(data<int64_t>(offsets_)) {
    if (merge == "anchor_plus_mean") {
      anchors_ = anchors_tensor->contiguous();
      merged_ = merged_tensor->contiguous();
      anchors = data<int64_t>(anchors_);
      merged = data<bool>(merged_);
    }
    check_indices(op);
  }

  bool adds_anchor(int64_t segment) const { return merged && merged[segment]; }

  SampleSegments of_sample(int64_t b) const {
    return {.perm = perm + b * num_tokens,
            .offsets = offsets + b * (count + 1),
            .count = count,
            .anchors = merged ? anchors + b * count : nullptr,
            .merged = merged ? merged + b * count : nullptr};
  }

  const int64_t batch, num_tokens, count;  // count: segments of a sample

 private:
  void check_indices(const char* op) const {
    const auto check_index = [&](const char* argument, int64_t index) {
      TORCH_CHECK_VALUE(index >= 0 && index < num_tokens, op, ": ", argument, ": expected indices in [0, ",
                        num_tokens, "), got ", index);
    };
    for (int64_t i = 0; i < batch * num_tokens; ++i) check_index("perm", perm[i]);
    for (int64_t b = 0; b < batch; ++b) {
      const int64_t* o = offsets + b * (count + 1);
      for (int64_t s = 0; s <= count; ++s)
        TORCH_CHECK_VALUE(o[s] >= (s ? o[s - 1] : 0) && o[s] <= num_tokens, op,
                          ": offsets: expected ascending values in [0, ", num_tokens, "], got ", o[s], " at ",
                          s);
    }
    for (int64_t s = 0; s < batch * count; ++s)
      if (adds_anchor(s)) check_index("anchors", anchors[s]);
  }

  Tensor perm_, offsets_, anchors_, merged_;

 public:
  const int64_t* perm;               // [B, N]
  const int64_t* offsets;            // [B, S+1]
  const int64_t* anchors = nullptr;  // [B, S]
  const bool* merged = nullptr;      // [B, S]
};

// [B, S, C]: the means of float32, bfloat16 or float16 tokens [B, N, C].
Tensor merge_segments(const Tensor& x, const Segments& segments);

}  // namespace vitcop
