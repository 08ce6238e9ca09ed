#include "cpu/vic/resolve.h"

#include <algorithm>
#include <limits>

namespace vitcop::vic {
namespace {

constexpr int32_t kUnknown = -2, kOnPath = -3;

}  // namespace

void rank_tokens(Scratch& s, int64_t n, bool released) {
  for (int64_t i = 0; i < n; ++i) s.order[i] = static_cast<int32_t>(i);
  const double* log = s.log;
  std::sort(s.order, s.order + n, [log](int32_t a, int32_t b) { return log[a] != log[b] ? log[a] > log[b] : a < b; });
  int32_t group = 0;
  for (int64_t p = 0; p < n; ++p) {
    const int32_t i = s.order[p];
    if (p > 0 && s.log[i] != s.log[s.order[p - 1]]) ++group;
    s.place[i] = static_cast<int32_t>(p);
    s.key[i] = released ? group : static_cast<int32_t>(p);
  }
  std::fill(s.key + n, s.key + s.n_pad, std::numeric_limits<int32_t>::max());
}

int64_t choose_centers(Scratch& s, int64_t n, int64_t count, int64_t num_centers, int64_t* centers) {
  s.gamma[s.order[0]] = std::numeric_limits<double>::infinity();  // the densest always is one
  std::copy_n(s.order, n, s.chosen);
  count = std::min(count, n);
  const double* gamma = s.gamma;
  const int32_t* place = s.place;
  std::nth_element(s.chosen, s.chosen + count - 1, s.chosen + n, [gamma, place](int32_t a, int32_t b) {
    return gamma[a] != gamma[b] ? gamma[a] > gamma[b] : place[a] < place[b];
  });
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
    const int32_t label = at >= 0 && s.label[at] != kOnPath ? s.label[at] : -1;  // or a cycle without a centre
    for (at = static_cast<int32_t>(i); at >= 0 && s.label[at] == kOnPath; at = s.parent[at]) s.label[at] = label;
  }
}

}  // namespace vitcop::vic
