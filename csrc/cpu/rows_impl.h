// Definitions behind rows.h; included by rows_portable.cpp, rows_avx2.cpp and rows_avx512.cpp only.
#pragma once

#include "cpu/rows.h"
#include "cpu/simd.h"

#include <limits>

namespace vitcop {
namespace {

constexpr int kStreams = 4;  // independent sums, so that no addition waits for the one before

template <class T>
inline __attribute__((always_inline)) void add_squares(V16* acc, const T* x, int64_t width) {
  int64_t c = 0;
  for (; c + kStreams * kLanes <= width; c += kStreams * kLanes)
#pragma GCC unroll 4
    for (int k = 0; k < kStreams; ++k) {
      // One stream alone does not keep memory busy: ask for the next page, where the hardware prefetcher
      // stops.
      __builtin_prefetch(reinterpret_cast<const char*>(x + c + k * kLanes) + 4096);
      const V16 v = load(x + c + k * kLanes);
      acc[k] = fma(v, v, acc[k]);
    }
  for (; c + kLanes <= width; c += kLanes) {
    const V16 v = load(x + c);
    acc[0] = fma(v, v, acc[0]);
  }
  if (c < width) {
    const V16 v = load_some(x + c, width - c);
    acc[1] = fma(v, v, acc[1]);
  }
}

inline float sum_streams(const V16* acc) {
  return sum((acc[0] + acc[1]) + (acc[2] + acc[3]));
}

// Walks memory in its own order; a row's sum takes its heads in the same order either way.
template <class T>
void square_sums(float* out, const T* x, int64_t head_stride, int64_t heads, int64_t row_stride, int64_t rows,
                 int64_t width) {
  if (head_stride == width && width % (kStreams * kLanes) == 0) {  // the heads of a token are one long row
    width *= heads;
    heads = 1;
  }
  if (head_stride <= row_stride) {
    for (int64_t r = 0; r < rows; ++r) {
      V16 acc[kStreams] = {};
      for (int64_t h = 0; h < heads; ++h) add_squares(acc, x + h * head_stride + r * row_stride, width);
      out[r] = sum_streams(acc);
    }
    return;
  }
  constexpr int64_t kBlock = 32;
  for (int64_t r0 = 0; r0 < rows; r0 += kBlock) {
    const int64_t count = rows - r0 < kBlock ? rows - r0 : kBlock;
    V16 acc[kBlock][kStreams] = {};
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t r = 0; r < count; ++r) {
        V16 row[kStreams];  // in registers, which an array indexed at run time is not
        for (int k = 0; k < kStreams; ++k) row[k] = acc[r][k];
        add_squares(row, x + h * head_stride + (r0 + r) * row_stride, width);
        for (int k = 0; k < kStreams; ++k) acc[r][k] = row[k];
      }
    for (int64_t r = 0; r < count; ++r) out[r0 + r] = sum_streams(acc[r]);
  }
}

template <class T>
void head_sum_squares(float* out, const T* x, int64_t head_stride, int64_t heads, int64_t row_stride,
                      int64_t rows, int64_t width) {
  constexpr int kWide = 8;
  for (int64_t r = 0; r < rows; ++r) {
    const T* row = x + r * row_stride;
    V16 total = {};
    int64_t c = 0;
    for (; c + kWide * kLanes <= width; c += kWide * kLanes) {
      V16 acc[kWide] = {};
      for (int64_t h = 0; h < heads; ++h)
        for (int k = 0; k < kWide; ++k) acc[k] += load(row + h * head_stride + c + k * kLanes);
      for (int k = 0; k < kWide; ++k) total = fma(acc[k], acc[k], total);
    }
    for (; c < width; c += kLanes) {
      V16 acc = {};
      for (int64_t h = 0; h < heads; ++h) {
        const T* p = row + h * head_stride + c;
        acc += c + kLanes <= width ? load(p) : load_some(p, width - c);
      }
      total = fma(acc, acc, total);
    }
    out[r] = sum(total);
  }
}

template <class T>
void scale_row(T* y, const T* x, float factor, const T* weight, int64_t width) {
  int64_t c = 0;
  for (; c + kLanes <= width; c += kLanes) store(y + c, load(x + c) * factor * load(weight + c));
  if (c < width)
    store_some(y + c, load_some(x + c, width - c) * factor * load_some(weight + c, width - c), width - c);
}

template <class T>
void divide_row(T* y, const T* x, float by, int64_t width) {
  int64_t c = 0;
  for (; c + kLanes <= width; c += kLanes) store(y + c, load(x + c) / by);
  if (c < width) store_some(y + c, load_some(x + c, width - c) / by, width - c);
}

template <class T, class Y>
bool mean(Y* y, const T* x, int64_t row_stride, const int64_t* members, int64_t count, const T* added,
          int64_t width) {
  constexpr int64_t kColumns = 1024;
  float acc[kColumns];
  bool finite = true;
  for (int64_t c0 = 0; c0 < width; c0 += kColumns) {
    const int64_t columns = width - c0 < kColumns ? width - c0 : kColumns;
    const int64_t padded = round_up(columns, kLanes);
    std::memset(acc, 0, static_cast<size_t>(padded) * sizeof(float));
    // Four rows a pass: one load and store of the sums for four of the rows.
    for (int64_t m = 0; m < count; m += 4) {
      const T* row[4];
      for (int64_t k = 0; k < 4; ++k) row[k] = x + members[m + k < count ? m + k : m] * row_stride + c0;
      const int64_t live = count - m;
      for (int64_t c = 0; c < padded; c += kLanes) {
        const auto at = [&](int64_t k) {
          return c + kLanes <= columns ? load(row[k] + c) : load_some(row[k] + c, columns - c);
        };
        V16 v = at(0);
        if (live >= 4) {
          v = (v + at(1)) + (at(2) + at(3));
        } else {
          if (live > 1) v += at(1);
          if (live > 2) v += at(2);
        }
        store(acc + c, load(acc + c) + v);
      }
    }
    const V16 divisor = splat(static_cast<float>(count));
    I16 bad = {};
    for (int64_t c = 0; c < padded; c += kLanes) {
      const bool whole = c + kLanes <= columns;
      V16 v = load(acc + c) / divisor;
      bad |= (v - v) != V16{};
      if (added) v += whole ? load(added + c0 + c) : load_some(added + c0 + c, columns - c);
      if (whole)
        store(y + c0 + c, v);
      else
        store_some(y + c0 + c, v, columns - c);
    }
    for (int i = 0; i < kLanes; ++i) finite &= bad[i] == 0;
  }
  return finite;
}

// --- attention
// ------------------------------------------------------------------------------------------------

#if defined(__AVX512F__)
// Lane i of the result is the sum of v[i]: four rounds of adding even and odd neighbours.
inline V16 sum_each(const V16 (&v)[16]) {
  V16 w[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) w[i] = v[i];
#pragma GCC unroll 4
  for (int n = 8; n > 0; n /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i) {
      const V16 a = w[2 * i], b = w[2 * i + 1];
      w[i] = __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
             __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    }
  return w[0];
}
constexpr int kGroup = 16;
#else
#if defined(__AVX2__)
inline void sum_each(const V16 (&v)[4], float* out) {
  __m256 w[4];
  for (int i = 0; i < 4; ++i) {
    float lanes[kLanes];
    store(lanes, v[i]);
    w[i] = _mm256_add_ps(_mm256_loadu_ps(lanes), _mm256_loadu_ps(lanes + 8));
  }
  const __m256 s = _mm256_hadd_ps(_mm256_hadd_ps(w[0], w[1]), _mm256_hadd_ps(w[2], w[3]));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1)));
}
#else
inline void sum_each(const V16 (&v)[4], float* out) {
  for (int i = 0; i < 4; ++i) out[i] = sum(v[i]);
}
#endif
constexpr int kGroup = 4;
#endif

// Dot products of one query with 16 keys; dim is a multiple of 16.
inline V16 dots(const float* query, const float* key, int64_t key_stride, int64_t dim) {
  float out[kLanes];
  for (int first = 0; first < kLanes; first += kGroup) {
    V16 acc[kGroup] = {};
    const float* k = key + first * key_stride;
    for (int64_t c = 0; c < dim; c += kLanes) {
      const V16 q = load(query + c);
#pragma GCC unroll 16
      for (int i = 0; i < kGroup; ++i) acc[i] = fma(q, load(k + i * key_stride + c), acc[i]);
    }
#if defined(__AVX512F__)
    store(out, sum_each(acc));
#else
    sum_each(acc, out + first);
#endif
  }
  return load(out);
}

inline V16 unless_masked(V16 scores, const bool* mask, int64_t count) {
  B16 b = {};
  std::memcpy(&b, mask, static_cast<size_t>(count < kLanes ? count : kLanes));
  return __builtin_convertvector(b, I16) != 0 ? scores : splat(-std::numeric_limits<float>::infinity());
}

// A row of floats, zero-padded to whole vectors.
template <class T>
void widen(float* out, const T* row, int64_t dim, float factor) {
  int64_t c = 0;
  for (; c + kLanes <= dim; c += kLanes) store(out + c, load(row + c) * factor);
  if (c < dim) store(out + c, load_some(row + c, dim - c) * factor);
}

template <class T>
void attention(const AttentionTile<T>& t) {
  const int64_t dim = round_up(t.dim, kLanes), padded = round_up(t.num_keys, kLanes);
  float* scores = t.scratch;  // [num_rows, padded]
  float* query = scores + t.num_rows * padded;
  float* key16 = query + t.num_rows * dim;
  for (int64_t r = 0; r < t.num_rows; ++r) widen(query + r * dim, t.query[r], t.dim, t.scale);

  for (int64_t j = 0; j < padded; j += kLanes) {
    const int64_t left = t.num_keys - j;
    // Keys of a [B, N, H, d] cache lie a power of two apart and evict each other from the L1 cache: copy them
    // together unless they are read once.
    const float* key = key16;
    int64_t stride = dim;
    bool in_place = false;
    if constexpr (sizeof(T) == sizeof(float)) in_place = t.num_rows == 1 && dim == t.dim && left >= kLanes;
    if (in_place) {
      key = reinterpret_cast<const float*>(t.key + j * t.key_stride);
      stride = t.key_stride;
    } else {
      for (int64_t i = 0; i < kLanes; ++i)
        widen(key16 + i * dim, t.key + (j + (i < left ? i : 0)) * t.key_stride, t.dim, 1.0f);
    }
    for (int64_t r = 0; r < t.num_rows; ++r) {
      V16 s = dots(query + r * dim, key, stride, dim);
      if (t.mask) s = unless_masked(s, t.mask[r] + j, left);
      store(scores + r * padded + j, s);
    }
  }

  const float lowest = -std::numeric_limits<float>::infinity();
  for (int64_t j = 0; j < t.num_keys; ++j) t.out[j] = 0.0f;
  for (int64_t r = 0; r < t.num_rows; ++r) {
    float* row = scores + r * padded;
    bool any = !t.mask;
    for (int64_t j = 0; !any && j < t.num_keys; ++j) any = t.mask[r][j];
    if (!any) continue;
    for (int64_t j = t.num_keys; j < padded; ++j) row[j] = lowest;
    V16 high = splat(lowest);
    for (int64_t j = 0; j < padded; j += kLanes) high = max(load(row + j), high);
    const float top = max(high);
    V16 total = {};
    for (int64_t j = 0; j < padded; j += kLanes) {
      const V16 e = exp_nonpositive(load(row + j) - top);
      store(row + j, e);
      total += e;
    }
    const float factor = 1.0f / sum(total);
    for (int64_t j = 0; j < t.num_keys; ++j) t.out[j] += row[j] * factor;
  }
}

template <class T>
constexpr Rows<T> kRows = {square_sums<T>, head_sum_squares<T>, scale_row<T>, divide_row<T>,
                           mean<T, T>,     mean<T, float>,      attention<T>};

constexpr RowsTable kRowsTable = {kRows<float>, kRows<bf16>, kRows<f16>};

}  // namespace
}  // namespace vitcop
