// Rows of q in float32, from the Gram tiles. Samples of moderate size store them all. Larger ones store tiles
// of the upper triangle, as many as that memory holds, and take the others again in each visit.
#pragma once

#include "cpu/vic/scratch.h"
#include "cpu/vic/team.h"

#include <algorithm>
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
    if (beyond()) return;
    if (stored_)
      fill();
    else
      fill_tiles();
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
        for (int64_t tj = 0; tj * kBlockRows < n; ++tj) gather(block, tj, out + tj * kBlockRows);
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

  static int64_t tile_number(int64_t ti, int64_t tj) { return tj * (tj + 1) / 2 + ti; }  // ti <= tj

  // Tile (ti, tj) as it stands, row by row at out.
  void compute(int64_t ti, int64_t tj, float* out, int64_t ld, bool mirror) {
    const int64_t step = kernels_.tile_panels, ip = ti * step, jp = tj * step;
    if (kernels_.tile(gram_, ip, std::min(ip + step, s_.panels), jp, std::min(jp + step, s_.panels),
                      out - tj * kBlockRows, ti * kBlockRows, ld, mirror))
      set_beyond();
  }

  void fill_tiles() {
    for_each(parallel_, s_.num_tiles, [&](int64_t item, int64_t) {
      int64_t ti = item, tj = 0;
      while (ti > tj) ti -= ++tj;
      compute(ti, tj, s_.tiles + item * Scratch::kTile, kBlockRows, ti == tj);
    });
  }

  // Tile (ti, tj) to out: stored, stored as (tj, ti), or taken again. q_ij = q_ji to the bit.
  void gather(int64_t ti, int64_t tj, float* out) {
    const int64_t number = tile_number(std::min(ti, tj), std::max(ti, tj));
    if (number >= s_.num_tiles) return compute(ti, tj, out, s_.ld, false);
    const float* stored = s_.tiles + number * Scratch::kTile;
    const int64_t rows = std::min(kBlockRows, s_.n_pad - ti * kBlockRows),
                  columns = std::min(kBlockRows, s_.n_pad - tj * kBlockRows);
    if (ti <= tj) {
      for (int64_t r = 0; r < rows; ++r) std::copy_n(stored + r * kBlockRows, columns, out + r * s_.ld);
    } else {
      for (int64_t c = 0; c < columns; ++c)
        for (int64_t r = 0; r < rows; ++r) out[r * s_.ld + c] = stored[c * kBlockRows + r];
    }
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
