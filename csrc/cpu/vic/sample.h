// One sample of vic_cluster, from its tokens to labels.
#pragma once

#include "cpu/vic/types.h"

#include <cstddef>

namespace vitcop::vic {

struct Options {
  bool released, cosine, knn, self, nearest, root_max;
  int64_t neighbours;  // knn's k
  double d_c, tau, dist_scale;
  int64_t num_centers;
  int64_t stored_tokens;  // memory holds as many q as all pairs of so many tokens have; the others are taken
                          // again
};

struct Places {
  const void* data = nullptr;  // null: no spatial limit
  int64_t row = 0, column = 0, dims = 0;
  double (*read)(const void*, int64_t) = nullptr;

  double at(int64_t i, int64_t p) const { return read(data, i * row + p * column); }
};

struct Sample {
  Tokens tokens;      // all rows, index null
  const bool* valid;  // or null
  int64_t valid_stride;
  Places places;
  int64_t count;  // centres wanted
  int64_t *labels, *centers, *parent;
  float *rho, *delta;
};

// Bytes of scratch for a sample of at most n tokens and this many workers. With knn, 1 <= neighbours <= n.
size_t scratch_size(int64_t n, int64_t d, int64_t dims, const Options&, const Kernels&, int64_t workers);

void cluster_sample(const Sample&, const Options&, const Kernels&, char* scratch, bool parallel);

}  // namespace vitcop::vic
