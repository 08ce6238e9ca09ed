// key_norms (Eq. 4): the norm of each token's key over all heads.
#include "cpu/norms.h"

#include <torch/library.h>

namespace vitcop {
namespace {

constexpr const char* kOp = "key_norms";

Tensor key_norms(const Tensor& keys, std::string_view heads) {
  check_floating(kOp, "keys", keys);
  check_dims(kOp, "keys", keys, 3, 4, "[B, H, N, d] or [H, N, d]");
  check_at_least(kOp, "keys.shape[-3] (heads)", keys.size(-3), 1);
  check_one_of(kOp, "heads", heads, {"l2", "mean"});
  if (keys.scalar_type() == at::kDouble) return call_reference(kOp, keys, std::string(heads))[0].toTensor();

  const Tensor k = with_contiguous_rows(keys);
  Tensor norms = empty(lead_and(keys, 3, {keys.size(-2)}), at::kFloat);
  if (norms.numel() == 0) return norms;
  if (k.size(-1) == 0) return norms.zero_();  // of any number of heads
  dispatch_element(k.scalar_type(), [&](auto element) {
    using T = decltype(element);
    norm_keys(mutable_data<float>(norms), data<T>(k), batch_of(k, 4), k.size(-3), k.size(-2), k.size(-1),
              batch_stride(k, 4), k.stride(-3), k.stride(-2), heads == "mean");
  });
  return norms;
}

}  // namespace

TORCH_LIBRARY_IMPL(vitcop, CPU, m) {
  m.impl("key_norms", key_norms);
}

}  // namespace vitcop
