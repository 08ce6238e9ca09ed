// plan_tokens (Eq. 5, Algorithm 3): from clusters and scores to segments of tokens. Serial per sample, O(N
// log N).
#include "cpu/common.h"
#include "cpu/plan.h"

#include <torch/library.h>

namespace vitcop {
namespace {

constexpr const char* kOp = "plan_tokens";

using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor>;

Outputs plan_tokens(const Tensor& labels, const Tensor& scores, int64_t num_clusters, int64_t budget,
                    std::string_view quota, bool fill) {
  TORCH_CHECK_TYPE(labels.scalar_type() == at::kLong || labels.scalar_type() == at::kInt, kOp,
                   ": labels: expected int64 or int32, got ", name_of(labels.scalar_type()));
  check_dims(kOp, "labels", labels, 1, 2, "[B, N] or [N]");
  check_floating(kOp, "scores", scores);
  check_shape(kOp, "scores", scores, labels.sizes());
  check_same_device(kOp, "scores", scores, "labels", labels);
  check_at_least(kOp, "num_clusters", num_clusters, 1);
  check_at_least(kOp, "budget", budget, 1);
  check_one_of(kOp, "quota", quota, {"exact", "floor", "released"});
  if (scores.scalar_type() == at::kDouble) {
    const auto out = call_reference(kOp, labels, scores, num_clusters, budget, std::string(quota), fill);
    return {out[0].toTensor(), out[1].toTensor(), out[2].toTensor(), out[3].toTensor()};
  }

  const int64_t batch = batch_of(labels, 2), n = labels.size(-1), segments = std::min(budget, n);
  Tensor perm = empty(labels.sizes(), at::kLong),
         offsets = empty(lead_and(labels, 1, {segments + 1}), at::kLong);
  Tensor anchors = empty(lead_and(labels, 1, {segments}), at::kLong),
         merged = empty(anchors.sizes(), at::kBool);
  if (batch == 0) return {perm, offsets, anchors, merged};
  const Plan first{mutable_data<int64_t>(perm), mutable_data<int64_t>(offsets),
                   mutable_data<int64_t>(anchors), mutable_data<bool>(merged), segments};
  const PlanOptions options{num_clusters, budget, quota, fill};
  const auto run = [&](const auto* label, const auto* score) {
    at::parallel_for(0, batch, grain(64 * n), [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b)
        Planner(label + b * batch_stride(labels, 2), labels.stride(-1), score + b * batch_stride(scores, 2),
                scores.stride(-1), n, options)
            .make({first.perm + b * n, first.offsets + b * (segments + 1), first.anchors + b * segments,
                   first.merged + b * segments, segments});
    });
  };
  dispatch_element(scores.scalar_type(), [&](auto element) {
    const auto* score = data<decltype(element)>(scores);
    labels.scalar_type() == at::kLong ? run(data<int64_t>(labels), score) : run(data<int32_t>(labels), score);
  });
  return {perm, offsets, anchors, merged};
}

}  // namespace

TORCH_LIBRARY_IMPL(vitcop, CPU, m) {
  m.impl("plan_tokens", plan_tokens);
}

}  // namespace vitcop
