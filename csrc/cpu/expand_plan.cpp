// expand_plan: from a plan for the visual tokens of a sequence to the plan of the whole sequence. Serial per
// sample, O(n + V).
#include "cpu/common.h"
#include "cpu/expand.h"

#include <torch/library.h>

namespace vitcop {
namespace {

constexpr const char* kOp = "expand_plan";

void check(const Tensor& slots, const Tensor& anchors, const std::optional<Tensor>& perm,
           const std::optional<Tensor>& offsets, const std::optional<Tensor>& merged,
           const std::optional<Tensor>& valid, int64_t num_slots, int64_t out_len) {
  check_dtype(kOp, "slots", slots, at::kLong);
  check_dims(kOp, "slots", slots, 1, 2, "[B, V] or [V]");
  check_dtype(kOp, "anchors", anchors, at::kLong);
  check_same_device(kOp, "anchors", anchors, "slots", slots);
  check_dims(kOp, "anchors", anchors, slots.dim(), slots.dim(), "[B, S] or [S], as slots");
  check_shape(kOp, "anchors", anchors, lead_and(slots, 1, {anchors.size(-1)}));
  check_at_least(kOp, "num_slots", num_slots, 0);
  check_in_range(kOp, "out_len", out_len, 0, num_slots);
  const int64_t segments = anchors.size(-1);
  const auto check_part = [&](const char* name, const std::optional<Tensor>& t, at::ScalarType dtype,
                              int64_t length) {
    if (!t) return;
    check_dtype(kOp, name, *t, dtype);
    check_same_device(kOp, name, *t, "slots", slots);
    check_shape(kOp, name, *t, lead_and(slots, 1, {length}));
  };
  TORCH_CHECK_VALUE(offsets || !perm, kOp, ": offsets: expected a tensor with perm, got None");
  TORCH_CHECK_VALUE(perm || !offsets, kOp, ": perm: expected a tensor with offsets, got None");
  check_part("perm", perm, at::kLong, slots.size(-1));
  check_part("offsets", offsets, at::kLong, one_more(segments));
  check_part("merged", merged, at::kBool, segments);
  check_part("valid", valid, at::kBool, num_slots);
}

template <class T>
const T* row(const std::optional<Tensor>& t, int64_t b) {
  return t ? data<T>(*t) + b * t->size(-1) : nullptr;
}

using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Outputs expand_plan(const Tensor& slots, const Tensor& anchors, const std::optional<Tensor>& perm,
                    const std::optional<Tensor>& offsets, const std::optional<Tensor>& merged,
                    const std::optional<Tensor>& valid, int64_t num_slots, int64_t out_len) {
  check(slots, anchors, perm, offsets, merged, valid, num_slots, out_len);
  const auto contiguous = [](const std::optional<Tensor>& t) {
    return t ? std::optional<Tensor>(t->contiguous()) : std::nullopt;
  };
  const std::optional<Tensor> in[] = {contiguous(slots),   contiguous(anchors), contiguous(perm),
                                      contiguous(offsets), contiguous(merged),  contiguous(valid)};
  const auto make = [&](int64_t length, at::ScalarType dtype) {
    return empty(lead_and(slots, 1, {length}), dtype);
  };
  const int64_t segments = anchors.size(-1);
  const Tensor out[] = {make(num_slots, at::kLong),        make(one_more(out_len), at::kLong),
                        make(out_len, at::kLong),          make(out_len, at::kBool),
                        make(num_slots, at::kLong),        make(segments, at::kLong),
                        make(one_more(out_len), at::kLong)};
  if (batch_of(slots, 2) == 0) return {out[0], out[1], out[2], out[3], out[4], out[5], out[6]};
  const auto row_of = [&](int64_t k, int64_t b) {
    return mutable_data<int64_t>(out[k]) + b * out[k].size(-1);
  };
  at::parallel_for(0, batch_of(slots, 2), grain(8 * num_slots), [&](int64_t begin, int64_t end) {
    std::vector<int64_t> scratch(2 * static_cast<size_t>(num_slots));
    for (int64_t b = begin; b < end; ++b)
      Expansion{.op = kOp,
                .num_tokens = slots.size(-1),
                .num_segments = segments,
                .num_slots = num_slots,
                .out_len = out_len,
                .slots = row<int64_t>(in[0], b),
                .anchors = row<int64_t>(in[1], b),
                .perm = row<int64_t>(in[2], b),
                .offsets = row<int64_t>(in[3], b),
                .merged = row<bool>(in[4], b),
                .valid = row<bool>(in[5], b),
                .out_perm = row_of(0, b),
                .out_offsets = row_of(1, b),
                .out_anchors = row_of(2, b),
                .out_merged = mutable_data<bool>(out[3]) + b * out_len,
                .column = row_of(4, b),
                .out_slots = row_of(5, b),
                .removed = row_of(6, b),
                .owner = scratch.data(),
                .stands = scratch.data() + num_slots}
          .expand_checked();
  });
  return {out[0], out[1], out[2], out[3], out[4], out[5], out[6]};
}

}  // namespace

TORCH_LIBRARY_IMPL(vitcop, CPU, m) {
  m.impl("expand_plan", expand_plan);
}

}  // namespace vitcop
