// Rows of q in float32, from the Gram tiles: stored for samples of moderate size, taken again in each visit
// otherwise.
#pragma once

#include "cpu/vic/scratch.h"
#include "cpu/vic/team.h"

#include <atomic>
#include <limits>

namespace vitcop::vic {

class FloatRows {
 public:
  using Real = float;

  FloatRows(const Tokens& tokens, const float* anchor, const Options& o, const Kernels& kernels,
            const Scratch& s, bool parallel)
      : gram_{tokens, s.packed, s.norm, s.panels, s.words, s.panel_size},
        kernels_(kernels),
        s_(s),
        options_(o),
        parallel_(parallel),
        stored_(tokens.n <= o.stored_tokens) {
    for_each(parallel, s.panels, [&](int64_t p, int64_t) {
      if (kernels.pack(tokens, anchor, p, s.packed + p * s.panel_size, s.norm + p * kernels.width))
        set_beyond();
    });
    if (stored_ && !beyond()) fill();
  }

  bool bad(int64_t i) const { return s_.norm[i] == std::numeric_limits<float>::infinity(); }
  // Some value needs more range than float32 has.
  bool beyond() const { return beyond_.load(std::memory_order_relaxed); }

  // d^2, short of dist_scale
  double squared(double q) const {
    return (options_.cosine ? q * q * 0.25 : q) + (options_.released ? 1e-8 : 0);
  }

  // f(i, row of q, worker) for every token.
  template <class F>
  void visit(const F& f) {
    const int64_t n = gram_.tokens.n;
    const int64_t rows = stored_ ? 16 : kBlockRows;
    for_each(parallel_, (n + rows - 1) / rows, [&](int64_t block, int64_t worker) {
      const int64_t begin = block * rows, end = std::min(begin + rows, n);
      const float* q = s_.rows + begin * s_.ld;
      if (!stored_) {
        float* out = s_.rows + worker * kBlockRows * s_.ld;
        const int64_t w = kernels_.width, step = kernels_.tile_panels,
                      ip1 = std::min(begin / w + step, s_.panels);
        for (int64_t jp = 0; jp < s_.panels; jp += step)
          tile(begin / w, ip1, jp, std::min(jp + step, s_.panels), out, begin, false);
        q = out;
      }
      for (int64_t i = begin; i < end; ++i) f(i, q + (i - begin) * s_.ld, worker);
    });
  }

  Density density(const float* q, const DensityArgs& a, int64_t worker) const {
    return kernels_.density(q, s_.n_pad, a, s_.heap + worker * options_.neighbours);
  }
  Nearest parent(const float* q, int64_t n_pad, int64_t i, int32_t limit, const ParentArgs& a) const {
    return kernels_.parent(q, n_pad, i, limit, a);
  }
  float widest(const float* q, int64_t n_pad) const { return kernels_.widest(q, n_pad); }

 private:
  void set_beyond() { beyond_.store(true, std::memory_order_relaxed); }

  void tile(int64_t ip0, int64_t ip1, int64_t jp0, int64_t jp1, float* out, int64_t row0, bool mirror) {
    if (kernels_.tile(gram_, ip0, ip1, jp0, jp1, out, row0, s_.ld, mirror)) set_beyond();
  }

  // The upper triangle in square tiles; smaller ones where there are few, so that the workers finish
  // together.
  void fill() {
    const int64_t step = s_.n_pad <= 384 ? kernels_.tile_panels / 2 : kernels_.tile_panels;
    const int64_t side = (s_.panels + step - 1) / step;
    const int64_t above = side * (side - 1) / 2;
    for_each(parallel_, above + side, [&](int64_t item, int64_t) {
      int64_t ti = item - above, tj = ti;
      if (item < above) {
        for (ti = 0, tj = item; tj >= side - 1 - ti; ++ti) tj -= side - 1 - ti;
        tj += ti + 1;
      }
      const int64_t ip = ti * step, jp = tj * step;
      tile(ip, std::min(ip + step, s_.panels), jp, std::min(jp + step, s_.panels), s_.rows, 0, true);
    });
  }

  const Gram gram_;
  const Kernels& kernels_;
  const Scratch& s_;
  const Options& options_;
  const bool parallel_, stored_;
  std::atomic<bool> beyond_{false};
};

}  // namespace vitcop::vic
