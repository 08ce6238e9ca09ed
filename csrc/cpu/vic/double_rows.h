// Rows of d^2 (short of dist_scale) in float64 by direct differences: right for any finite features, where
// float32 squares over- or underflow. Rare, so simple rather than fast: nothing is stored but a row per
// worker.
#pragma once

#include "cpu/vic/elements.h"
#include "cpu/vic/sample.h"
#include "cpu/vic/team.h"

#include <cmath>
#include <limits>
#include <vector>

namespace vitcop::vic {

class DoubleRows {
 public:
  using Real = double;

  DoubleRows(const Tokens& tokens, const Options& o, bool parallel, int64_t workers)
      : tokens_(tokens),
        cosine_(o.cosine),
        eps_(o.released ? 1e-8 : 0),
        parallel_(parallel),
        rows_(workers, std::vector<double>(tokens.n)),
        bad_(tokens.n) {
    with_elements(tokens.dtype, [&](auto element) {
      for (int64_t i = 0; i < tokens.n; ++i) {
        const auto* row = static_cast<const decltype(element)*>(tokens.row(i));
        for (int64_t k = 0; k < tokens.d; ++k) bad_[i] |= !std::isfinite(to_float(row[k]));
      }
    });
  }

  bool bad(int64_t i) const { return bad_[i]; }
  bool beyond() const { return false; }
  double squared(double d2) const { return d2; }

  // f(i, row of d^2, worker) for every token.
  template <class F>
  void visit(const F& f) {
    for_each(parallel_, tokens_.n, [&](int64_t i, int64_t worker) {
      double* q = rows_[worker].data();
      with_elements(tokens_.dtype, [&](auto element) { fill<decltype(element)>(i, q); });
      f(i, static_cast<const double*>(q), worker);
    });
  }

  Density density(const double* q, const DensityArgs& a, int64_t) const {
    return a.knn ? knn(q, a) : gaussian(q, a);
  }

  struct Best {
    double q;
    int32_t index;
  };
  Best parent(const double* q, int64_t n_pad, int64_t i, int32_t limit, const ParentArgs& a) const {
    Best best{kInf, -1};
    for (int64_t j = 0; j < tokens_.n; ++j)
      if (q[j] < best.q && a.key[j] < limit && within(a, n_pad, i, j)) best = {q[j], static_cast<int32_t>(j)};
    return best;
  }
  double widest(const double* q, int64_t) const {
    double most = -1;
    for (int64_t j = 0; j < tokens_.n; ++j)
      if (q[j] < kInf && q[j] > most) most = q[j];
    return most;
  }

 private:
  static constexpr double kInf = std::numeric_limits<double>::infinity();

  template <class T>
  void fill(int64_t i, double* q) const {
    const T* mine = static_cast<const T*>(tokens_.row(i));
    for (int64_t j = 0; j < tokens_.n; ++j) {
      if (j == i || bad_[i] || bad_[j]) {
        q[j] = kInf;
        continue;
      }
      const T* other = static_cast<const T*>(tokens_.row(j));
      double sums[8] = {};
      int64_t k = 0;
      for (; k + 8 <= tokens_.d; k += 8)
        for (int l = 0; l < 8; ++l) {
          const double gap = to_double(mine[k + l]) - to_double(other[k + l]);
          sums[l] += gap * gap;
        }
      for (; k < tokens_.d; ++k) {
        const double gap = to_double(mine[k]) - to_double(other[k]);
        sums[0] += gap * gap;
      }
      const double sum =
          ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
      q[j] = (cosine_ ? sum * sum * 0.25 : sum) + eps_;
    }
  }

  static bool within(const ParentArgs& a, int64_t n_pad, int64_t i, int64_t j) {
    if (!a.places) return true;
    double gap2 = 0;
    for (int64_t p = 0; p < a.dims; ++p) {
      const double gap = a.places[p * n_pad + j] - a.places[p * n_pad + i];
      gap2 += gap * gap;
    }
    return gap2 <= a.tau2;
  }

  Density gaussian(const double* q, const DensityArgs& a) const {
    double nearest = kInf;
    for (int64_t j = 0; j < tokens_.n; ++j) nearest = std::min(nearest, q[j]);
    if (!a.self && nearest == kInf) return {-kInf, 0};
    const double base = a.self ? 0 : nearest * a.inverse;
    double s = a.self ? 1 : 0, s2 = 0;
    for (int64_t j = 0; j < tokens_.n; ++j) {
      if (q[j] == kInf) continue;
      const double term = q[j] == nearest && !a.self ? 1 : std::exp(base - q[j] * a.inverse);
      const double rounded = (term + a.magic) - a.magic;
      s += rounded;
      s2 += (term - rounded + a.magic2) - a.magic2;
    }
    s += s2;
    const double log_rho = std::log(s) - base;
    return {log_rho, static_cast<float>(a.self ? s : std::exp(log_rho))};
  }

  Density knn(const double* q, const DensityArgs& a) const {
    std::vector<double> sorted(q, q + tokens_.n);
    std::sort(sorted.begin(), sorted.end());
    double total = 0;
    int64_t count = a.self;
    for (int64_t k = 0; k < a.k && sorted[k] < kInf; ++k, ++count) total += sorted[k] * a.scale2;
    if (count == 0) return {-kInf, 0};
    const double log_rho = -total / static_cast<double>(count);
    return {log_rho, static_cast<float>(std::exp(log_rho))};
  }

  const Tokens tokens_;
  const bool cosine_;
  const double eps_;
  const bool parallel_;
  std::vector<std::vector<double>> rows_;
  std::vector<char> bad_;
};

}  // namespace vitcop::vic
