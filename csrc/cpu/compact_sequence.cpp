// compact_sequence: segment_mean of the hidden states, and what belongs to their slots copied by anchor.
#include "cpu/common.h"
#include "cpu/segments.h"

#include <torch/library.h>

#include <cstring>

namespace vitcop {
namespace {

constexpr const char* kOp = "compact_sequence";

void check_companions(at::TensorList companions, const Tensor& x) {
  const int64_t lead = x.dim() - 1;
  for (size_t k = 0; k < companions.size(); ++k) {
    const Tensor& t = companions[k];
    const std::string name = "companions[" + std::to_string(k) + "]";
    const at::ScalarType dtype = t.scalar_type();
    TORCH_CHECK_TYPE(is_floating(dtype) || dtype == at::kLong || dtype == at::kInt || dtype == at::kBool, kOp,
                     ": ", name, ": expected a floating dtype, int64, int32 or bool, got ", name_of(dtype));
    check_same_device(kOp, name.c_str(), t, "x", x);
    const bool fits = t.dim() >= lead && t.size(lead - 1) == x.size(-2) &&
                      (lead == 1 || t.size(0) == x.size(0) || t.size(0) == 1);
    const std::string batch =
        x.dim() == 3 ? (x.size(0) == 1 ? "1, " : std::to_string(x.size(0)) + " or 1, ") : "";
    TORCH_CHECK_VALUE(fits, kOp, ": ", name, ": expected [", batch, x.size(-2), ", ...], got ",
                      shape_of(t.sizes()));
  }
}

// Rows of a companion by anchor: [B or 1, n, ...] -> [B, S, ...].
Tensor gather(const Tensor& companion, const Tensor& anchors, int64_t num_tokens) {
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
    for (int64_t s = 0; s < count; ++s, to += bytes)
      std::memcpy(to, from + b * step + std::max<int64_t>(index[b * count + s], 0) * bytes, bytes);
  return out;
}

std::tuple<Tensor, std::vector<Tensor>> compact_sequence(const Tensor& x, at::TensorList companions,
                                                         const Tensor& perm, const Tensor& offsets,
                                                         const Tensor& anchors,
                                                         const std::optional<Tensor>& merged,
                                                         std::string_view merge) {
  check_segments(kOp, x, perm, offsets, anchors, merged, merge);
  check_companions(companions, x);
  if (x.scalar_type() == at::kDouble) {
    const auto results =
        call_reference(kOp, x, companions.vec(), perm, offsets, anchors, merged, std::string(merge));
    return {results[0].toTensor(), results[1].toTensorVector()};
  }
  const Tensor index = anchors.contiguous();
  const int64_t* at = data<int64_t>(index);
  for (int64_t i = 0; i < index.numel(); ++i)
    TORCH_CHECK_VALUE(at[i] >= -1 && at[i] < x.size(-2), kOp, ": anchors: expected indices in [0, ",
                      x.size(-2), ") or -1, got ", at[i]);
  std::tuple<Tensor, std::vector<Tensor>> out{
      merge_segments(x, Segments(kOp, perm, offsets, anchors, merged, merge)), {}};
  for (const Tensor& companion : companions) std::get<1>(out).push_back(gather(companion, index, x.size(-2)));
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(vitcop, CPU, m) {
  m.impl("compact_sequence", compact_sequence);
}

}  // namespace vitcop
