#include "cpu/vic/resolve.h"

#include <ATen/EmptyTensor.h>
#include <ATen/Functions.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace vitcop::vic {
namespace {

constexpr int32_t kUnknown = -2, kOnPath = -3;
constexpr double kInf = std::numeric_limits<double>::infinity();

// The authors' argsort(-gamma) in float32: not stable, so that ties fall as they do in torch's own sort of
// that row.
void choose_as_released(Scratch& s, int64_t n, int64_t count, int64_t total) {
  const at::Tensor key(at::detail::empty_cpu({total}, at::kFloat));
  float* keys = key.mutable_data_ptr<float>();
  std::fill_n(keys, total, static_cast<float>(kInf));
  for (int64_t i = 0; i < n; ++i) {
    const float delta = static_cast<float>(std::sqrt(s.delta2[i]));
    // A distance may be too large for float32 alone. 0 * inf would be sorted behind padding.
    const float gamma = std::isinf(delta) ? delta : s.rho[i] * delta;
    keys[s.index ? s.index[i] : i] = s.bad[i] ? 1.0f : -gamma;
  }
  const at::Tensor order = at::argsort(key);
  const int64_t* best = order.const_data_ptr<int64_t>();
  for (int64_t k = 0; k < count; ++k)
    s.chosen[k] =
        static_cast<int32_t>(s.index ? std::lower_bound(s.index, s.index + n, best[k]) - s.index : best[k]);
}

}  // namespace

void rank_tokens(Scratch& s, int64_t n, bool released) {
  for (int64_t i = 0; i < n; ++i) s.order[i] = static_cast<int32_t>(i);
  const double* log = s.log;
  std::sort(s.order, s.order + n,
            [log](int32_t a, int32_t b) { return log[a] != log[b] ? log[a] > log[b] : a < b; });
  int32_t group = 0;
  for (int64_t p = 0; p < n; ++p) {
    const int32_t i = s.order[p];
    if (p > 0 && s.log[i] != s.log[s.order[p - 1]]) ++group;
    s.place[i] = static_cast<int32_t>(p);
    s.key[i] = released ? group : static_cast<int32_t>(p);
  }
  std::fill(s.key + n, s.key + s.n_pad, std::numeric_limits<int32_t>::max());
}

int64_t choose_centers(Scratch& s, int64_t n, int64_t count, int64_t num_centers, int64_t total,
                       bool released, int64_t* centers) {
  count = std::min(count, n);
  if (released) {
    choose_as_released(s, n, count, total);
  } else {
    std::copy_n(s.order, n, s.chosen);
    const double* gamma = s.gamma;
    const int32_t* place = s.place;
    std::nth_element(s.chosen, s.chosen + count - 1, s.chosen + n, [gamma, place](int32_t a, int32_t b) {
      return gamma[a] != gamma[b] ? gamma[a] > gamma[b] : place[a] < place[b];
    });
  }
  std::sort(s.chosen, s.chosen + count);
  std::fill_n(s.label, n, kUnknown);
  for (int64_t k = 0; k < count; ++k) {
    s.label[s.chosen[k]] = static_cast<int32_t>(k);
    centers[k] = s.index ? s.index[s.chosen[k]] : s.chosen[k];
  }
  std::fill(centers + count, centers + num_centers, -1);
  return count;
}

void follow_parents(Scratch& s, int64_t n, bool released) {
  if (!released) {  // a parent is denser, so its label is known
    for (int64_t p = 0; p < n; ++p) {
      const int32_t i = s.order[p];
      if (s.label[i] == kUnknown) s.label[i] = s.label[s.parent[i]];
    }
    return;
  }
  for (int64_t i = 0; i < n; ++i) {
    int32_t at = static_cast<int32_t>(i);
    while (at >= 0 && s.label[at] == kUnknown) {
      s.label[at] = kOnPath;
      at = s.parent[at];
    }
    const int32_t label =
        at >= 0 && s.label[at] != kOnPath ? s.label[at] : -1;  // or a cycle without a centre
    for (at = static_cast<int32_t>(i); at >= 0 && s.label[at] == kOnPath; at = s.parent[at])
      s.label[at] = label;
  }
}

}  // namespace vitcop::vic
