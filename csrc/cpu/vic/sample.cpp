#include "cpu/vic/sample.h"

#include "cpu/vic/anchors.h"
#include "cpu/vic/double_rows.h"
#include "cpu/vic/float_rows.h"
#include "cpu/vic/resolve.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

namespace vitcop::vic {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kParallelWork = 1 << 21;  // multiply-adds from which on a second thread pays

struct Job {
  const Sample& sample;
  const Options& options;
  Scratch& s;
  int64_t n;
};

DensityArgs density_args(const Options& o, int64_t n) {
  DensityArgs a{};
  a.knn = o.knn;
  a.self = o.self;
  a.cosine = o.cosine;
  a.k = std::min(o.neighbours - o.self, n - 1);
  a.eps = o.released ? 1e-8 : 0;
  a.scale2 = o.dist_scale * o.dist_scale;
  // Finite for any d_c: infinity times the distance of duplicates would be no number.
  a.inverse = std::min(a.scale2 / o.d_c / o.d_c, std::numeric_limits<double>::max());
  const int p = 1 + std::bit_width(static_cast<uint64_t>(n));
  a.magic = std::ldexp(1.5, p);
  a.magic2 = std::ldexp(1.5, 2 * p - 53);
  return a;
}

template <class Rows>
void find_densities(Rows& rows, const Job& job) {
  Scratch& s = job.s;
  const DensityArgs args = density_args(job.options, job.n);
  rows.visit([&](int64_t i, const auto* q, int64_t worker) {
    s.bad[i] = rows.bad(i);
    const Density d = s.bad[i] ? Density{-kInf, 0} : rows.density(q, args, worker);
    s.rho[i] = d.rho;
    // The authors rank densities as float32 has them.
    s.log[i] = job.options.released ? std::log(static_cast<double>(d.rho)) : d.log;
  });
}

// Near nothing is the worst centre, however far it is from a denser token. The densest has the largest, or
// ties.
double log_gamma(double log, double delta2) {
  return log == -kInf ? -kInf : log + 0.5 * std::log(delta2);
}

template <class Rows>
void find_parents(Rows& rows, const Job& job) {
  Scratch& s = job.s;
  const Options& o = job.options;
  const int32_t* key = s.key;
  const double scale2 = o.dist_scale * o.dist_scale;
  const ParentArgs near{key, job.sample.places.data ? s.places : nullptr, job.sample.places.dims,
                        o.tau * o.tau * (1 + 1e-6)};
  const ParentArgs anywhere{key, nullptr, 0, 0};
  const int32_t first = !s.index || s.index[0] == 0 ? 0 : kInvalidParent;
  rows.visit([&](int64_t i, const auto* q, int64_t) {
    const int32_t limit = key[i] + o.released;
    auto best = rows.parent(q, s.n_pad, i, limit, near);
    s.delta2[i] = best.index < 0 ? kInf : rows.squared(best.q) * scale2;
    if (best.index < 0) {
      if (o.released) {
        best.index = first;
      } else {
        if (near.places) best = rows.parent(q, s.n_pad, i, limit, anywhere);
        if (best.index < 0) best.index = i == s.order[0] ? kNoParent : s.order[0];
      }
    }
    s.parent[i] = best.index;
    s.gamma[i] = log_gamma(s.log[i], s.delta2[i]);
    if (o.root_max) {
      const double widest = rows.widest(q, s.n_pad);
      s.widest[i] = widest < 0 ? 0 : rows.squared(widest) * scale2;
    }
  });
}

// The largest distance takes the place of every infinite delta.
void replace_infinite_deltas(const Job& job) {
  Scratch& s = job.s;
  const double widest = std::max(0.0, *std::max_element(s.widest, s.widest + job.n));
  for (int64_t i = 0; i < job.n; ++i) {
    if (s.delta2[i] < kInf) continue;
    s.delta2[i] = widest;
    s.gamma[i] = log_gamma(s.log[i], widest);
  }
}

template <class Rows>
void find_nearest_centers(Rows& rows, const Job& job, int64_t count) {
  Scratch& s = job.s;
  rows.visit([&](int64_t i, const auto* q, int64_t) {
    if (s.label[i] >= 0) return;  // a centre
    double best = kInf;
    s.label[i] = 0;
    for (int64_t k = 0; k < count; ++k) {
      if (q[s.chosen[k]] < best) {
        best = q[s.chosen[k]];
        s.label[i] = static_cast<int32_t>(k);
      }
    }
  });
}

// Everything behind the distances. False, and to be done again in float64, if they leave float32's range.
template <class Rows>
bool solve(Rows& rows, const Job& job) {
  Scratch& s = job.s;
  const Options& o = job.options;
  if (rows.beyond()) return false;
  find_densities(rows, job);
  if (rows.beyond()) return false;
  rank_tokens(s, job.n, o.released);
  find_parents(rows, job);
  if (o.root_max) replace_infinite_deltas(job);
  const int64_t count = choose_centers(s, job.n, job.sample.count, o.num_centers, job.sample.tokens.n,
                                       o.released, job.sample.centers);
  if (o.nearest) {
    find_nearest_centers(rows, job, count);
  } else {
    follow_parents(s, job.n, o.released);
  }
  return true;
}

void write(const Job& job) {
  const Scratch& s = job.s;
  const Sample& out = job.sample;
  for (int64_t i = 0; i < job.n; ++i) {
    const int64_t at = s.index ? s.index[i] : i;
    const int64_t parent = s.parent[i];
    out.labels[at] = s.label[i];
    out.parent[at] = parent < 0 ? (parent == kInvalidParent ? 0 : -1) : s.index ? s.index[parent] : parent;
    out.rho[at] = s.rho[i];
    out.delta[at] = static_cast<float>(std::sqrt(s.delta2[i]));
  }
}

void write_invalid(const Sample& out, const Options& o) {
  const int64_t n = out.tokens.n;
  std::fill_n(out.labels, n, -1);
  std::fill_n(out.parent, n, -1);
  std::fill_n(out.rho, n, 0.0f);
  std::fill_n(out.delta, n, std::numeric_limits<float>::infinity());
  std::fill_n(out.centers, o.num_centers, -1);
}

}  // namespace

size_t scratch_size(int64_t n, int64_t d, int64_t dims, const Options& o, const Kernels& kernels,
                    int64_t workers) {
  return Scratch(nullptr, n, d, dims, o, kernels, workers).bytes;
}

void cluster_sample(const Sample& sample, const Options& o, const Kernels& kernels, char* memory,
                    bool parallel) {
  Tokens tokens = sample.tokens;
  if (sample.valid) {
    const bool* valid = sample.valid;
    tokens.n = 0;
    for (int64_t i = 0; i < sample.tokens.n; ++i) tokens.n += valid[i * sample.valid_stride];
  }
  if (tokens.n < sample.tokens.n || tokens.n == 0) write_invalid(sample, o);
  if (tokens.n == 0) return;
  const int64_t n = tokens.n, dims = sample.places.data ? sample.places.dims : 0;
  parallel = parallel && static_cast<double>(n) * n * tokens.d > kParallelWork;
  const int64_t workers = parallel ? at::get_num_threads() : 1;

  Scratch s(memory, n, tokens.d, dims, o, kernels, workers);
  if (n == sample.tokens.n) s.index = nullptr;
  if (s.index) {
    for (int64_t i = 0, at = 0; i < sample.tokens.n; ++i)
      if (sample.valid[i * sample.valid_stride]) s.index[at++] = i;
    tokens.index = s.index;
  }
  for (int64_t p = 0; p < dims; ++p)
    for (int64_t i = 0; i < s.n_pad; ++i)
      s.places[p * s.n_pad + i] = i < n ? sample.places.at(s.index ? s.index[i] : i, p) : 0;
  if (o.cosine) {
    normalize(tokens, parallel, s.unit);
    tokens = {s.unit, tokens.d, nullptr, n, tokens.d, Dtype::F32};
  }

  const Job job{sample, o, s, n};
  const float* anchor = anchors(tokens, kernels.pairs, parallel, s.anchor, s.work);
  FloatRows rows(tokens, anchor, o, kernels, s, parallel);
  if (!solve(rows, job)) {
    DoubleRows wide(tokens, o, parallel, workers);
    solve(wide, job);
  }
  write(job);
}

}  // namespace vitcop::vic
