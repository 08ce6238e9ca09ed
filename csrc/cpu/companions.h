// What belongs to the slots of a sequence beside its hidden states: what compact_sequence and prune_sequence
// share.
#pragma once

#include "cpu/common.h"

#include <algorithm>
#include <cstring>

namespace vitcop {

inline void check_companions(const char* op, at::TensorList companions, const Tensor& x) {
  const int64_t lead = x.dim() - 1;
  for (size_t k = 0; k < companions.size(); ++k) {
    const Tensor& t = companions[k];
    const at::ScalarType dtype = t.scalar_type();
    const bool known = is_floating(dtype) || dtype == at::kLong || dtype == at::kInt || dtype == at::kBool;
    const bool fits = t.dim() >= lead && t.size(lead - 1) == x.size(-2) &&
                      (lead == 1 || t.size(0) == x.size(0) || t.size(0) == 1);
    if (known && fits && t.device() == x.device()) continue;
    const std::string name = "companions[" + std::to_string(k) + "]";
    TORCH_CHECK_TYPE(known, op, ": ", name, ": expected a floating dtype, int64, int32 or bool, got ",
                     name_of(dtype));
    check_same_device(op, name.c_str(), t, "x", x);
    const std::string batch =
        x.dim() == 3 ? (x.size(0) == 1 ? "1, " : std::to_string(x.size(0)) + " or 1, ") : "";
    TORCH_CHECK_VALUE(fits, op, ": ", name, ": expected [", batch, x.size(-2), ", ...], got ",
                      shape_of(t.sizes()));
  }
}

// Rows of `bytes`, `step` bytes apart, by anchor; those that lie one after another in one go.
inline void gather_rows(char* to, const char* from, int64_t bytes, int64_t step, const int64_t* anchors,
                        int64_t count) {
  for (int64_t s = 0; s < count;) {
    const int64_t first = std::max<int64_t>(anchors[s], 0);
    int64_t run = 1;
    while (step == bytes && s + run < count && anchors[s + run] == first + run) ++run;
    std::memcpy(to + s * bytes, from + first * step, run * bytes);
    s += run;
  }
}

// Rows of a companion by anchor: [B or 1, n, ...] -> [B, S, ...].
inline Tensor gather(const Tensor& companion, const Tensor& anchors, int64_t num_tokens) {
  const bool batched = anchors.dim() == 2;
  const int64_t lead = batched ? 2 : 1, batch = batch_of(anchors, 2), count = anchors.size(-1);
  const Tensor rows = companion.contiguous();
  std::vector<int64_t> sizes(anchors.sizes().begin(), anchors.sizes().end());
  sizes.insert(sizes.end(), rows.sizes().begin() + lead, rows.sizes().end());
  Tensor out = empty(sizes, rows.scalar_type());
  int64_t bytes = static_cast<int64_t>(rows.element_size());
  for (int64_t d = lead; d < rows.dim(); ++d) bytes *= rows.size(d);
  const int64_t step = batched && rows.size(0) > 1 ? num_tokens * bytes : 0;
  const char* from = data<char>(rows);
  char* to = mutable_data<char>(out);
  const int64_t* index = data<int64_t>(anchors);
  for (int64_t b = 0; b < batch; ++b)
    gather_rows(to + b * count * bytes, from + b * step, bytes, bytes, index + b * count, count);
  return out;
}

}  // namespace vitcop
