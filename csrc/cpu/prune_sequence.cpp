// prune_sequence: a whole pruning stage after its scores: the choice (select_tokens or plan_tokens), the plan
// of the sequence (expand_plan) and the shortened sequence (compact_sequence). It runs once per forward
// between other code, with cold caches: one scratch, no tensor that is not an output, and rows copied in
// runs.
#include "cpu/common.h"
#include "cpu/companions.h"
#include "cpu/expand.h"
#include "cpu/means.h"
#include "cpu/plan.h"
#include "cpu/segments.h"
#include "cpu/select.h"

#include <torch/library.h>

#include <algorithm>
#include <new>

namespace vitcop {
namespace {

constexpr const char* kOp = "prune_sequence";

struct Arguments {
  const Tensor& x;
  at::TensorList companions;
  const Tensor& slots;
  const Tensor& scores;
  int64_t budget;
  const std::optional<Tensor>& labels;
  const std::optional<Tensor>& valid;
  int64_t num_clusters;
  std::string_view quota, merge;
  bool largest;
  int64_t out_len;

  bool merging() const { return labels.has_value(); }
};

void check(const Arguments& a) {
  check_floating(kOp, "x", a.x);
  check_dims(kOp, "x", a.x, 2, 3, "[B, n, C] or [n, C]");
  check_at_least(kOp, "x.shape[-2] (tokens)", a.x.size(-2), 1);
  check_companions(kOp, a.companions, a.x);
  const int64_t lead = a.x.dim() - 2;
  const auto check_given = [&](const char* name, const Tensor& t, at::IntArrayRef shape) {
    check_same_device(kOp, name, t, "x", a.x);
    check_shape(kOp, name, t, shape);
  };
  check_dtype(kOp, "slots", a.slots, at::kLong);
  check_same_device(kOp, "slots", a.slots, "x", a.x);
  check_dims(kOp, "slots", a.slots, lead + 1, lead + 1, "[B, V] or [V], as x");
  if (lead) check_shape(kOp, "slots", a.slots, {a.x.size(0), a.slots.size(-1)});
  check_floating(kOp, "scores", a.scores);
  check_given("scores", a.scores, a.slots.sizes());
  check_one_of(kOp, "quota", a.quota, {"exact", "floor", "released"});
  check_one_of(kOp, "merge", a.merge, {"mean", "anchor_plus_mean"});
  if (a.labels) {
    const at::ScalarType dtype = a.labels->scalar_type();
    TORCH_CHECK_TYPE(dtype == at::kLong || dtype == at::kInt, kOp, ": labels: expected int64 or int32, got ",
                     name_of(dtype));
    check_given("labels", *a.labels, a.slots.sizes());
    check_at_least(kOp, "num_clusters", a.num_clusters, 1);
    check_at_least(kOp, "budget", a.budget, 1);
    TORCH_CHECK_VALUE(!a.largest, kOp, ": largest: expected False with labels, got True");
  } else {
    check_in_range(kOp, "budget", a.budget, 0, a.slots.size(-1));
  }
  if (a.valid) {
    check_dtype(kOp, "valid", *a.valid, at::kBool);
    check_given("valid", *a.valid, a.x.sizes().slice(0, lead + 1));
  }
  check_in_range(kOp, "out_len", a.out_len, 0, a.x.size(-2));
}

struct Outputs {
  Tensor y;
  std::vector<Tensor> companions;
  Tensor source, slots, anchors, perm, offsets, merged;
};

// Everything but y and the companions, and what y needs of it: the plan of the whole sequence.
class Stage {
 public:
  explicit Stage(const Arguments& a)
      : a_(a),
        batch_(batch_of(a.x, 3)),
        n_(a.x.size(-2)),
        visual_(a.slots.size(-1)),
        segments_(a.merging() ? std::min(a.budget, visual_) : a.budget),
        adds_anchors_(a.merging() && a.merge == "anchor_plus_mean") {
    const auto make = [&](int64_t length, at::ScalarType dtype) {
      return empty(lead_and(a.x, 2, {length}), dtype);
    };
    const auto length = [&](int64_t with_labels) { return a.merging() ? with_labels : 0; };
    out.source = make(a.out_len, at::kLong);
    out.slots = make(segments_, at::kLong);
    out.anchors = make(segments_, at::kLong);
    out.perm = make(length(visual_), at::kLong);
    out.offsets = make(length(one_more(segments_)), at::kLong);
    out.merged = make(length(segments_), at::kBool);
  }

  Outputs out;

  void choose_and_expand() {
    if (batch_ == 0) return;
    const Tensor slots = a_.slots.contiguous();
    const Tensor valid = a_.valid ? a_.valid->contiguous() : Tensor();
    // Of each sample: the owners of the slots; then the ranks of the scores or, with labels, the plan of the
    // sequence.
    constexpr int64_t kMost = int64_t{1} << 56;  // beyond any memory, and sums and products stay in range
    if (std::max(n_, visual_) > kMost / batch_) throw std::bad_alloc();
    sample_scratch_ = n_ + (a_.merging() ? n_ + a_.out_len + 1 : (visual_ + 1) / 2);
    if (adds_anchors_) sample_scratch_ += a_.out_len;
    scratch_.resize(static_cast<size_t>(batch_ * sample_scratch_));
    const auto run = [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        choose(b);
        expand(b, data<int64_t>(slots), a_.valid ? data<bool>(valid) : nullptr);
      }
    };
    const int64_t samples = grain((a_.merging() ? 64 : 8) * visual_ + 8 * n_);
    if (batch_ <= samples || at::get_num_threads() == 1)
      run(0, batch_);
    else
      at::parallel_for(0, batch_, samples, run);
  }

  void compact() {
    const Tensor rows = with_contiguous_rows(a_.x);
    out.y = empty(lead_and(a_.x, 2, {a_.out_len, a_.x.size(-1)}), a_.x.scalar_type());
    if (out.y.numel() == 0) {
    } else if (a_.merging()) {
      dispatch_element(a_.x.scalar_type(), [&](auto element) {
        using T = decltype(element);
        merge_samples(mutable_data<T>(out.y), data<T>(rows), batch_, batch_stride(rows, 3), rows.stride(-2),
                      a_.x.size(-1), n_, [&](int64_t b) { return segments_of(b); });
      });
    } else {
      copy_rows(rows);
    }
    out.companions.reserve(a_.companions.size());
    for (const Tensor& t : a_.companions) out.companions.push_back(gather(t, out.source, n_));
  }

 private:
  int64_t* owners(int64_t b) { return scratch_.data() + b * sample_scratch_; }
  uint32_t* ranks(int64_t b) { return reinterpret_cast<uint32_t*>(owners(b) + n_); }
  int64_t* members(int64_t b) { return owners(b) + n_; }
  int64_t* bounds(int64_t b) { return members(b) + n_; }
  bool* flags(int64_t b) { return reinterpret_cast<bool*>(bounds(b) + a_.out_len + 1); }

  int64_t* anchors(int64_t b) { return mutable_data<int64_t>(out.anchors) + b * segments_; }
  int64_t* perm(int64_t b) { return mutable_data<int64_t>(out.perm) + b * visual_; }
  int64_t* offsets(int64_t b) { return mutable_data<int64_t>(out.offsets) + b * (segments_ + 1); }
  bool* merged(int64_t b) { return mutable_data<bool>(out.merged) + b * segments_; }
  int64_t* source(int64_t b) { return mutable_data<int64_t>(out.source) + b * a_.out_len; }

  void choose(int64_t b) {
    dispatch_element(a_.scores.scalar_type(), [&](auto element) {
      const auto* score = data<decltype(element)>(a_.scores) + b * batch_stride(a_.scores, 2);
      const int64_t step = a_.scores.stride(-1);
      if (!a_.merging()) {
        if (segments_) select_row(anchors(b), score, step, visual_, segments_, a_.largest, ranks(b));
        return;
      }
      const Tensor& labels = *a_.labels;
      const auto plan = [&](const auto* label) {
        Planner(label + b * batch_stride(labels, 2), labels.stride(-1), score, step, visual_,
                {a_.num_clusters, a_.budget, a_.quota, true})
            .make({perm(b), offsets(b), anchors(b), merged(b), segments_});
      };
      labels.scalar_type() == at::kLong ? plan(data<int64_t>(labels)) : plan(data<int32_t>(labels));
    });
  }

  void expand(int64_t b, const int64_t* slots, const bool* valid) {
    const bool merging = a_.merging();
    Expansion{.op = kOp,
              .num_tokens = visual_,
              .num_segments = segments_,
              .num_slots = n_,
              .out_len = a_.out_len,
              .slots = slots + b * visual_,
              .anchors = anchors(b),
              .perm = merging ? perm(b) : nullptr,
              .offsets = merging ? offsets(b) : nullptr,
              .merged = merging ? merged(b) : nullptr,
              .valid = valid ? valid + b * n_ : nullptr,
              .out_perm = merging ? members(b) : nullptr,
              .out_offsets = merging ? bounds(b) : nullptr,
              .out_anchors = source(b),
              .out_merged = adds_anchors_ ? flags(b) : nullptr,
              .out_slots = mutable_data<int64_t>(out.slots) + b * segments_,
              .owner = owners(b),
              .stands = nullptr}
        .expand_trusted();
  }

  // y where every new slot is an old one; padding, which comes first, is 0.
  void copy_rows(const Tensor& rows) {
    const int64_t size = static_cast<int64_t>(rows.element_size()), bytes = rows.size(-1) * size;
    const int64_t step = rows.stride(-2) * size, sample = batch_stride(rows, 3) * size;
    const auto copy = [&](int64_t begin, int64_t end) {
      while (begin < end) {
        const int64_t b = begin / a_.out_len, s = begin % a_.out_len;
        const int64_t count = std::min(a_.out_len - s, end - begin);
        const int64_t padding =
            std::count_if(source(b) + s, source(b) + s + count, [](int64_t p) { return p < 0; });
        char* to = mutable_data<char>(out.y) + begin * bytes;
        std::memset(to, 0, padding * bytes);
        gather_rows(to + padding * bytes, data<char>(rows) + b * sample, bytes, step, source(b) + s + padding,
                    count - padding);
        begin += count;
      }
    };
    const int64_t total = batch_ * a_.out_len, some = grain(bytes);
    if (total <= some || at::get_num_threads() == 1)
      copy(0, total);
    else
      at::parallel_for(0, total, some, copy);
  }

  SampleSegments segments_of(int64_t b) {
    return {.perm = members(b),
            .offsets = bounds(b),
            .count = a_.out_len,
            .anchors = source(b),
            .merged = adds_anchors_ ? flags(b) : nullptr};
  }

  const Arguments& a_;
  const int64_t batch_, n_, visual_, segments_;
  const bool adds_anchors_;
  std::vector<int64_t> scratch_;
  int64_t sample_scratch_ = 0;
};

using Returned = std::tuple<Tensor, std::vector<Tensor>, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Returned prune_sequence(const Tensor& x, at::TensorList companions, const Tensor& slots, const Tensor& scores,
                        int64_t budget, const std::optional<Tensor>& labels,
                        const std::optional<Tensor>& valid, int64_t num_clusters, std::string_view quota,
                        std::string_view merge, bool largest, int64_t out_len) {
  const Arguments a{x,     companions,   slots, scores, budget,  labels,
                    valid, num_clusters, quota, merge,  largest, out_len};
  check(a);
  if (x.scalar_type() == at::kDouble || scores.scalar_type() == at::kDouble) {
    const auto r = call_reference(kOp, x, companions.vec(), slots, scores, budget, labels, valid,
                                  num_clusters, std::string(quota), std::string(merge), largest, out_len);
    return {r[0].toTensor(), r[1].toTensorVector(), r[2].toTensor(), r[3].toTensor(),
            r[4].toTensor(), r[5].toTensor(),       r[6].toTensor(), r[7].toTensor()};
  }
  Stage stage(a);
  stage.choose_and_expand();
  stage.compact();
  Outputs& o = stage.out;
  return {std::move(o.y),       std::move(o.companions), std::move(o.source),  std::move(o.slots),
          std::move(o.anchors), std::move(o.perm),       std::move(o.offsets), std::move(o.merged)};
}

}  // namespace

TORCH_LIBRARY_IMPL(vitcop, CPU, m) {
  m.impl("prune_sequence", prune_sequence);
}

}  // namespace vitcop
