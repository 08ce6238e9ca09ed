// All memory of one sample, carved out of one allocation.
#pragma once

#include "cpu/vic/sample.h"

#include <algorithm>

namespace vitcop::vic {

struct Scratch {
  int64_t n_pad, ld, panels, words, panel_size, num_tiles = 0;
  float *packed, *norm, *anchor, *work, *unit, *rows, *tiles, *heap, *rho;
  double *log, *widest, *delta2, *gamma, *places;
  int64_t* index;
  int32_t *place, *key, *order, *parent, *chosen, *label;
  bool* bad;
  size_t bytes = 0;
  static constexpr int64_t kTile = kBlockRows * kBlockRows;

  Scratch(char* base, int64_t n, int64_t d, int64_t dims, const Options& o, const Kernels& k, int64_t workers)
      : base_(base) {
    const int64_t w = k.width;
    n_pad = (n + w - 1) / w * w;
    ld = n_pad + (n_pad % 256 == 0 ? w : 0);  // rows 1 KiB apart would share cache sets
    panels = n_pad / w;
    words = k.pairs ? (d + 1) / 2 : d;
    panel_size = (words + w - 1) / w * w * w;
    take(packed, panels * panel_size);
    take(norm, n_pad);
    take(anchor, d + 32);
    take(work, d + 32);
    take(unit, o.cosine ? n * d : 0);
    if (n > o.stored_tokens) {
      const int64_t side = (n + kBlockRows - 1) / kBlockRows;
      num_tiles = std::min(side * (side + 1) / 2, o.stored_tokens * o.stored_tokens / kTile);
    }
    take(rows, n <= o.stored_tokens ? n_pad * ld : workers * kBlockRows * ld);
    take(tiles, num_tiles * kTile);
    take(heap, o.knn ? workers * o.neighbours : 0);
    take(rho, n);
    take(widest, o.root_max ? n : 0);
    take(log, n);
    take(delta2, n);
    take(gamma, n);
    take(places, dims * n_pad);
    take(index, n);
    take(place, n);
    take(key, n_pad);
    take(order, n);
    take(parent, n);
    take(chosen, n);
    take(label, n);
    take(bad, n);
  }

 private:
  template <class T>
  void take(T*& p, int64_t count) {
    p = base_ ? reinterpret_cast<T*>(base_ + bytes) : nullptr;  // null: only to add up the bytes
    bytes += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
  }
  char* base_;
};

}  // namespace vitcop::vic
