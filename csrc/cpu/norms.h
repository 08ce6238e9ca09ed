// Norms over heads and columns: float32 sums, redone in double where they leave float32's range.
#pragma once

#include "cpu/common.h"
#include "cpu/rows.h"

namespace vitcop {

// One row's keys: [heads, width], heads head_stride apart.
template <class T>
double exact_norm(const T* x, int64_t head_stride, int64_t heads, int64_t width, bool mean) {
  double total = 0;
  for (int64_t c = 0; c < width; ++c) {
    double sum = 0;
    for (int64_t h = 0; h < heads; ++h) {
      const double v = to_double(x[h * head_stride + c]);
      sum += mean ? v : v * v;
    }
    total += mean ? sum * sum : sum;
  }
  return std::sqrt(total) / (mean ? static_cast<double>(heads) : 1.0);
}

// out[r] = sqrt(sum_h |x_h|^2), or |mean_h x_h|, for rows of keys.
template <class T>
void norm_rows(float* out, const T* x, int64_t head_stride, int64_t heads, int64_t row_stride, int64_t count,
               int64_t width, bool mean) {
  (mean ? rows_of<T>().head_sum_squares : rows_of<T>().square_sums)(out, x, head_stride, heads, row_stride,
                                                                    count, width);
  for (int64_t r = 0; r < count; ++r) {
    if (trustworthy(out[r]))
      out[r] = std::sqrt(out[r]) / (mean ? static_cast<float>(heads) : 1.0f);
    else
      out[r] = static_cast<float>(exact_norm(x + r * row_stride, head_stride, heads, width, mean));
  }
}

// norms [B, N] of keys whose element (b, h, n, c) lies at b*batch_stride + h*head_stride + n*row_stride + c.
template <class T>
void norm_keys(float* out, const T* keys, int64_t batch, int64_t heads, int64_t num_rows, int64_t width,
               int64_t batch_stride, int64_t head_stride, int64_t row_stride, bool mean) {
  constexpr int64_t kBlock = 16;  // few rows, so that the threads' shares are even
  const int64_t blocks = (num_rows + kBlock - 1) / kBlock;
  at::parallel_for(0, batch * blocks, grain(kBlock * heads * width), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / blocks, first = i % blocks * kBlock;
      norm_rows(out + b * num_rows + first, keys + b * batch_stride + first * row_stride, head_stride, heads,
                row_stride, std::min(kBlock, num_rows - first), width, mean);
    }
  });
}

}  // namespace vitcop
