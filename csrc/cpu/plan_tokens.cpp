// plan_tokens (Eq. 5, Algorithm 3): from clusters and scores to segments of tokens. Serial per sample, O(N
// log N).
#include "cpu/common.h"
#include "cpu/order.h"

#include <torch/library.h>

#include <algorithm>
#include <numeric>

namespace vitcop {
namespace {

constexpr const char* kOp = "plan_tokens";

struct Token {
  int64_t label;
  uint64_t key;  // rank of the score << 32 | index: ascending is best first
  int64_t index() const { return static_cast<int64_t>(key & 0xffffffffu); }
};

struct Cluster {
  int64_t begin, size;  // its tokens, best first
  double total;         // summed score
  int64_t elites = 0;
  int64_t remainder = 0;
};

struct Options {
  int64_t num_clusters, budget;
  std::string_view quota;
  bool fill;
};

// Where one sample's plan goes; see ops/plan_tokens/op.py.
struct Plan {
  int64_t* perm;
  int64_t* offsets;
  int64_t* anchors;
  bool* merged;
  int64_t num_segments;
};

class Sample {
 public:
  template <class Label, class Score>
  Sample(const Label* labels, int64_t label_stride, const Score* scores, int64_t score_stride, int64_t n,
         const Options& options)
      : n_(n), options_(options) {
    tokens_.reserve(n);
    for (int64_t i = 0; i < n; ++i) {
      int64_t label = labels[i * label_stride];
      if (label < 0 || label >= options.num_clusters) {
        if (options.quota != "released") continue;
        label = -1;  // one more cluster
      }
      tokens_.push_back(
          {label, uint64_t{rank_of(scores[i * score_stride], false)} << 32 | static_cast<uint64_t>(i)});
    }
    std::sort(tokens_.begin(), tokens_.end(), [](const Token& a, const Token& b) {
      return a.label != b.label ? a.label < b.label : a.key < b.key;
    });
    for (int64_t t = 0; t < size(); ++t) {
      if (t == 0 || tokens_[t].label != tokens_[t - 1].label) clusters_.push_back({t, 0, 0.0});
      clusters_.back().size += 1;
      clusters_.back().total += to_double(scores[tokens_[t].index() * score_stride]);
    }
    for (Cluster& c : clusters_)
      if (c.total != c.total) c.total = INFINITY;
  }

  void make(const Plan& plan) {
    group_.assign(n_, kDropped);
    const bool keep_all = size() <= options_.budget;
    if (keep_all) {
      for (const Token& t : tokens_) group_[t.index()] = kElite;
    } else if (num_clusters() > options_.budget) {
      merge_whole_clusters();
    } else {
      deal_elites();
      for (int64_t c = 0; c < num_clusters(); ++c) set_group(clusters_[c], clusters_[c].elites, c);
      if (options_.quota == "floor" && options_.fill) fill_free_slots();
    }
    write(plan);
  }

 private:
  static constexpr int64_t kElite = -1, kDropped = -2;

  int64_t size() const { return static_cast<int64_t>(tokens_.size()); }
  int64_t num_clusters() const { return static_cast<int64_t>(clusters_.size()); }

  // The first `elites` tokens of a cluster stay as they are, the others join `group`.
  void set_group(const Cluster& cluster, int64_t elites, int64_t group) {
    for (int64_t t = 0; t < cluster.size; ++t)
      group_[tokens_[cluster.begin + t].index()] = t < elites ? kElite : group;
  }

  // Clusters by summed score, ties by label.
  std::vector<int64_t> by_total(bool descending) const {
    std::vector<int64_t> order(clusters_.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      return descending ? clusters_[a].total > clusters_[b].total : clusters_[a].total < clusters_[b].total;
    });
    return order;
  }

  // More clusters than budget: the budget-1 of smallest summed score stay clusters, all others become one.
  void merge_whole_clusters() {
    int64_t group = 0;
    for (int64_t c : by_total(false)) {
      set_group(clusters_[c], 0, group);
      group = std::min(group + 1, options_.budget - 1);
    }
  }

  void deal_elites() {
    const int64_t elite_budget = options_.budget - num_clusters();
    if (options_.quota == "released") {
      deal_as_released(elite_budget);
      return;
    }
    missing_ = elite_budget;
    for (Cluster& c : clusters_) {
      c.elites = c.size * elite_budget / size();
      c.remainder = c.size * elite_budget % size();
      missing_ -= c.elites;
    }
    if (options_.quota == "exact") deal_missing();
  }

  // One each in rounds by descending remainder; a cluster down to its last token drops out.
  void deal_missing() {
    std::vector<int64_t> open(clusters_.size());
    std::iota(open.begin(), open.end(), 0);
    std::stable_sort(open.begin(), open.end(),
                     [&](int64_t a, int64_t b) { return clusters_[a].remainder > clusters_[b].remainder; });
    while (missing_ > 0) {
      std::erase_if(open, [&](int64_t c) { return clusters_[c].elites >= clusters_[c].size - 1; });
      for (size_t i = 0; i < open.size() && missing_ > 0; ++i, --missing_) ++clusters_[open[i]].elites;
    }
  }

  // The authors' weights in float32, rounded half to even, and one repair pass.
  void deal_as_released(int64_t elite_budget) {
    const float mergeable = static_cast<float>(size() - num_clusters());
    int64_t difference = elite_budget;
    for (Cluster& c : clusters_) {
      const float weight = static_cast<float>(c.size - 1) / mergeable;
      c.elites = std::min<int64_t>(std::nearbyint(weight * static_cast<float>(elite_budget)), c.size - 1);
      difference -= c.elites;
    }
    const int64_t step = difference > 0 ? 1 : -1;
    for (int64_t i : by_total(difference < 0)) {
      if (difference == 0) break;
      Cluster& c = clusters_[i];
      if (step > 0 ? c.elites >= c.size - 1 : c.elites <= 0) continue;
      c.elites += step;
      difference -= step;
    }
  }

  // The best tokens that are neither elite nor the last of their cluster take the slots that Eq. 5's floors
  // lose.
  void fill_free_slots() {
    std::vector<uint64_t> candidates;
    for (const Cluster& c : clusters_)
      for (int64_t t = c.elites; t < c.size - 1; ++t) candidates.push_back(tokens_[c.begin + t].key);
    const auto chosen = candidates.begin() + std::min<int64_t>(missing_, candidates.size());
    if (chosen != candidates.end()) std::nth_element(candidates.begin(), chosen, candidates.end());
    for (auto key = candidates.begin(); key != chosen; ++key) group_[Token{0, *key}.index()] = kElite;
  }

  // CSR of the elites and groups, ordered by anchor.
  void write(const Plan& plan) const {
    struct Group {
      int64_t members = 0, seen = 0, segment = -1;
    };
    std::vector<Group> groups(clusters_.size());
    for (int64_t g : group_)
      if (g >= 0) ++groups[g].members;

    int64_t segments = 0;
    plan.offsets[0] = 0;
    const auto add_segment = [&](int64_t anchor, int64_t length, bool merged) {
      TORCH_INTERNAL_ASSERT(segments < plan.num_segments);
      plan.anchors[segments] = anchor;
      plan.merged[segments] = merged;
      plan.offsets[segments + 1] = plan.offsets[segments] + length;
      return segments++;
    };
    std::vector<int64_t> segment(n_);  // of the elites
    for (int64_t i = 0; i < n_; ++i) {
      if (group_[i] == kElite) {
        segment[i] = add_segment(i, 1, false);
      } else if (group_[i] >= 0) {
        Group& g = groups[group_[i]];
        if (g.seen++ == g.members / 2) g.segment = add_segment(i, g.members, true);
      }
    }
    for (int64_t s = segments; s < plan.num_segments; ++s) {
      plan.anchors[s] = -1;
      plan.merged[s] = false;
      plan.offsets[s + 1] = plan.offsets[s];
    }

    std::vector<int64_t> next(plan.offsets, plan.offsets + segments);
    int64_t dropped = plan.offsets[segments];
    for (int64_t i = 0; i < n_; ++i) {
      if (group_[i] == kDropped)
        plan.perm[dropped++] = i;
      else
        plan.perm[next[group_[i] == kElite ? segment[i] : groups[group_[i]].segment]++] = i;
    }
  }

  int64_t n_;
  Options options_;
  std::vector<Token> tokens_;  // those in a cluster, by label, best first
  std::vector<Cluster> clusters_;
  std::vector<int64_t> group_;  // of each token: kElite, kDropped or the group it is merged into
  int64_t missing_ = 0;         // elites that the floors of Eq. 5 leave undealt
};

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
  const Options options{num_clusters, budget, quota, fill};
  const auto run = [&](const auto* label, const auto* score) {
    at::parallel_for(0, batch, grain(64 * n), [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b)
        Sample(label + b * batch_stride(labels, 2), labels.stride(-1), score + b * batch_stride(scores, 2),
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
