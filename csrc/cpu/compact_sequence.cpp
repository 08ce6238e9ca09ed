// compact_sequence: segment_mean of the hidden states, and what belongs to their slots copied by anchor.
#include "cpu/common.h"
#include "cpu/companions.h"
#include "cpu/segments.h"

#include <torch/library.h>

namespace vitcop {
namespace {

constexpr const char* kOp = "compact_sequence";

std::tuple<Tensor, std::vector<Tensor>> compact_sequence(const Tensor& x, at::TensorList companions,
                                                         const Tensor& perm, const Tensor& offsets,
                                                         const Tensor& anchors,
                                                         const std::optional<Tensor>& merged,
                                                         std::string_view merge) {
  check_segments(kOp, x, perm, offsets, anchors, merged, merge);
  check_companions(kOp, companions, x);
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
