// The plan of one sample (Eq. 5, Algorithm 3): what plan_tokens and prune_sequence share.
#pragma once

#include "cpu/common.h"
#include "cpu/order.h"

#include <algorithm>
#include <numeric>

namespace vitcop {

struct PlanToken {
  int64_t label;
  uint64_t key;  // rank of the score << 32 | index: ascending is best first
  int64_t index() const { return static_cast<int64_t>(key & 0xffffffffu); }
};

struct PlanCluster {
  int64_t begin, size;  // its tokens, best first
  double total;         // summed score
  int64_t elites = 0;
  int64_t remainder = 0;
};

struct PlanOptions {
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

class Planner {
 public:
  template <class Label, class Score>
  Planner(const Label* labels, int64_t label_stride, const Score* scores, int64_t score_stride, int64_t n,
          const PlanOptions& options)
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
    std::sort(tokens_.begin(), tokens_.end(), [](const PlanToken& a, const PlanToken& b) {
      return a.label != b.label ? a.label < b.label : a.key < b.key;
    });
    for (int64_t t = 0; t < size(); ++t) {
      if (t == 0 || tokens_[t].label != tokens_[t - 1].label) clusters_.push_back({t, 0, 0.0});
      clusters_.back().size += 1;
      clusters_.back().total += to_double(scores[tokens_[t].index() * score_stride]);
    }
    for (PlanCluster& c : clusters_)
      if (c.total != c.total) c.total = INFINITY;
  }

  void make(const Plan& plan) {
    group_.assign(n_, kDropped);
    const bool keep_all = size() <= options_.budget;
    if (keep_all) {
      for (const PlanToken& t : tokens_) group_[t.index()] = kElite;
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
  void set_group(const PlanCluster& cluster, int64_t elites, int64_t group) {
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
    for (PlanCluster& c : clusters_) {
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
    for (PlanCluster& c : clusters_) {
      const float weight = static_cast<float>(c.size - 1) / mergeable;
      c.elites = std::min<int64_t>(std::nearbyint(weight * static_cast<float>(elite_budget)), c.size - 1);
      difference -= c.elites;
    }
    const int64_t step = difference > 0 ? 1 : -1;
    for (int64_t i : by_total(difference < 0)) {
      if (difference == 0) break;
      PlanCluster& c = clusters_[i];
      if (step > 0 ? c.elites >= c.size - 1 : c.elites <= 0) continue;
      c.elites += step;
      difference -= step;
    }
  }

  // The best tokens that are neither elite nor the last of their cluster take the slots that Eq. 5's floors
  // lose.
  void fill_free_slots() {
    std::vector<uint64_t> candidates;
    for (const PlanCluster& c : clusters_)
      for (int64_t t = c.elites; t < c.size - 1; ++t) candidates.push_back(tokens_[c.begin + t].key);
    const auto chosen = candidates.begin() + std::min<int64_t>(missing_, candidates.size());
    if (chosen != candidates.end()) std::nth_element(candidates.begin(), chosen, candidates.end());
    for (auto key = candidates.begin(); key != chosen; ++key) group_[PlanToken{0, *key}.index()] = kElite;
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
  PlanOptions options_;
  std::vector<PlanToken> tokens_;  // those in a cluster, by label, best first
  std::vector<PlanCluster> clusters_;
  std::vector<int64_t> group_;  // of each token: kElite, kDropped or the group it is merged into
  int64_t missing_ = 0;         // elites that the floors of Eq. 5 leave undealt
};

}  // namespace vitcop
