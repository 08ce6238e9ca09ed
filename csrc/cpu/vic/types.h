// What the kernels of vic_cluster share: plain data, and the table that each instruction set fills in.
#pragma once

#include <cstdint>

namespace vitcop::vic {

enum class Dtype { F32, BF16, F16 };

// The tokens of one sample: rows of d consecutive elements.
struct Tokens {
  const void* data;
  int64_t stride;        // elements from row to row
  const int64_t* index;  // row of token i, or null: row i
  int64_t n, d;
  Dtype dtype;

  const void* row(int64_t i) const {
    const int64_t at = (index ? index[i] : i) * stride;
    return static_cast<const char*>(data) + at * (dtype == Dtype::F32 ? 4 : 2);
  }
};

// Tokens in panels of `width`: packed[panel][word][lane]; a word is a float32 or a pair of bfloat16.
struct Gram {
  Tokens tokens;
  const float* packed;  // [panels, words rounded up to width, width]
  const float* norm;    // [panels * width] |x|^2 after anchoring; inf: infinitely far from everything
  int64_t panels, words, panel_size;
};

struct DensityArgs {
  bool knn, self, cosine;
  int64_t k;       // knn: neighbours, self not counted
  double eps;      // added to every d^2 but the own
  double scale2;   // dist_scale^2
  double inverse;  // dist_scale^2 / d_c^2
  double magic;    // 1.5 * 2^p > number of terms: adding and subtracting it rounds a term to 2^(p-52),
  double magic2;   // and with this what is left of it to a quantum as much finer
};

struct Density {
  double log;  // -inf: near nothing
  float rho;
};

struct ParentArgs {
  const int32_t* key;    // [n_pad] j is denser than i where key[j] < limit
  const double* places;  // [dims, n_pad], or null: no spatial limit
  int64_t dims;
  double tau2;
};

struct Nearest {
  float q;
  int32_t index;  // -1: none
};

struct Kernels {
  int width;        // lanes of a panel
  int tile_panels;  // most panels on a side of a tile
  bool pairs;       // words are pairs of bfloat16
  // Pack a panel and write its norms; true: a token's square leaves float32's range.
  bool (*pack)(const Tokens&, const float* anchor, int64_t panel, float* packed, float* norm);
  // q = |x_i - x_j|^2 of panels [ip0, ip1) x [jp0, jp1), row i at out + (i - row0) * ld; inf on the diagonal
  // and for bad tokens. mirror: the upper triangle only, written to both sides. True: float32 cannot hold
  // some q.
  bool (*tile)(const Gram&, int64_t ip0, int64_t ip1, int64_t jp0, int64_t jp1, float* out, int64_t row0,
               int64_t ld, bool mirror);
  Density (*density)(const float* q, int64_t n_pad, const DensityArgs&, float* heap);
  Nearest (*parent)(const float* q, int64_t n_pad, int64_t i, int32_t limit, const ParentArgs&);
  float (*widest)(const float* q, int64_t n_pad);  // largest finite q, or -1
};

extern const Kernels kPortable, kAvx2, kAvx512, kAvx512Bf16;

constexpr float kHuge = 0x1p122f;   // squares beyond this go to the double path
constexpr float kTiny = 0x1p-96f;   // as do distinct tokens whose q is below this
constexpr int64_t kBlockRows = 96;  // rows of a tile, at most

}  // namespace vitcop::vic
