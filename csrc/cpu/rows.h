// The inner loops of the CPU kernels over rows of memory, compiled once per instruction set.
#pragma once

#include "cpu/elements.h"

#include <cstdint>

namespace vitcop {

// Query rows of one key head; see attention_saliency.cpp.
template <class T>
struct AttentionTile {
  const T* key;  // [num_keys, dim], rows key_stride apart
  int64_t key_stride, num_keys, dim;
  const T* const* query;    // num_rows rows of dim
  const bool* const* mask;  // num_rows rows of num_keys, or nullptr
  int64_t num_rows;
  float scale;
  float* scratch;  // attention_scratch(...) floats
  float* out;      // [num_keys]: the sum of the rows' attention
};

constexpr int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// Per-row scores, the queries in float, and 16 keys in float.
constexpr int64_t attention_scratch(int64_t num_rows, int64_t num_keys, int64_t dim) {
  return num_rows * round_up(num_keys, 16) + (num_rows + 16) * round_up(dim, 16);
}

template <class T>
struct Rows {
  // out[r] = sum over heads h and columns of x[h*head_stride + r*row_stride + :width]^2
  void (*square_sums)(float* out, const T* x, int64_t head_stride, int64_t heads, int64_t row_stride,
                      int64_t rows, int64_t width);
  // out[r] = sum over columns of (sum over heads)^2
  void (*head_sum_squares)(float* out, const T* x, int64_t head_stride, int64_t heads, int64_t row_stride,
                           int64_t rows, int64_t width);
  // y = x * factor * weight, rounded once
  void (*scale)(T* y, const T* x, float factor, const T* weight, int64_t width);
  // y = x / by, rounded to float and then to T
  void (*divide)(T* y, const T* x, float by, int64_t width);
  // y = mean over members m of x[m*row_stride + :width], plus `added` if given; false if a mean is not finite
  bool (*mean)(T* y, const T* x, int64_t row_stride, const int64_t* members, int64_t count, const T* added,
               int64_t width);
  bool (*mean_in_float)(float* y, const T* x, int64_t row_stride, const int64_t* members, int64_t count,
                        const T* added, int64_t width);
  void (*attention)(const AttentionTile<T>& tile);
};

struct RowsTable {
  Rows<float> of_float;
  Rows<bf16> of_bf16;
  Rows<f16> of_f16;
};

// The table for the instruction set in use.
const RowsTable& rows_table();

template <class T>
const Rows<T>& rows_of();
template <>
inline const Rows<float>& rows_of() {
  return rows_table().of_float;
}
template <>
inline const Rows<bf16>& rows_of() {
  return rows_table().of_bf16;
}
template <>
inline const Rows<f16>& rows_of() {
  return rows_table().of_f16;
}

}  // namespace vitcop
