// The means of segments (Eq. 6): what segment_mean, compact_sequence and prune_sequence share.
#pragma once

#include "cpu/common.h"
#include "cpu/rows.h"
#include "cpu/segments.h"

#include <algorithm>
#include <cstring>

namespace vitcop {

constexpr int64_t kSlab =
    512;  // columns of one mean: where one is not finite, all of them are summed in float64

template <class T>
void exact_mean(T* y, const T* x, int64_t row_stride, const int64_t* members, int64_t count, const T* added,
                int64_t width) {
  for (int64_t c = 0; c < width; ++c) {
    double sum = 0;
    for (int64_t m = 0; m < count; ++m) sum += to_double(x[members[m] * row_stride + c]);
    y[c] = from_double<T>(sum / static_cast<double>(count) + (added ? to_double(added[c]) : 0.0));
  }
}

// Columns [column, column + columns) of one sample; `column` is a multiple of kSlab. y [S, width] is
// contiguous.
template <class T>
void merge_columns(T* y, const T* x, int64_t row_stride, int64_t width, const SampleSegments& segments,
                   int64_t column, int64_t columns) {
  const auto& mean = rows_of<T>().mean;
  const bool whole_rows = columns == width && row_stride == width;
  const T* from = x + column;
  for (int64_t s = 0; s < segments.count; ++s) {
    const int64_t count = segments.length(s);
    const int64_t* of = segments.perm + segments.offsets[s];
    T* to = y + s * width + column;
    const T* added = segments.adds_anchor(s) ? from + segments.anchors[s] * row_stride : nullptr;
    if (count == 0 && !added) {
      std::memset(to, 0, columns * sizeof(T));
    } else if (count == 0) {
      std::memcpy(to, added, columns * sizeof(T));
    } else if (count == 1 && !added) {
      int64_t run = 1;  // of segments whose tokens lie one after another
      if (whole_rows)
        while (s + run < segments.count && segments.copies(s + run) && of[run] == of[0] + run) ++run;
      std::memcpy(to, from + of[0] * row_stride, run * columns * sizeof(T));
      s += run - 1;
    } else {
      for (int64_t c = 0; c < columns; c += kSlab) {
        const int64_t some = std::min(kSlab, columns - c);
        const T* added_here = added ? added + c : nullptr;
        if (!mean(to + c, from + c, row_stride, of, count, added_here, some))
          exact_mean(to + c, from + c, row_stride, of, count, added_here, some);
      }
    }
  }
}

// All samples: y [B, S, width] contiguous; segments_of(b) are those of sample b.
template <class T, class SegmentsOf>
void merge_samples(T* y, const T* x, int64_t batch, int64_t batch_stride, int64_t row_stride, int64_t width,
                   int64_t num_tokens, const SegmentsOf& segments_of) {
  const auto merge = [&](int64_t b, int64_t column, int64_t columns) {
    const SampleSegments segments = segments_of(b);
    merge_columns(y + b * segments.count * width, x + b * batch_stride, row_stride, width, segments, column,
                  columns);
  };
  // Segments differ in length, columns do not.
  const int64_t slabs = (width + kSlab - 1) / kSlab, slab_grain = grain(num_tokens * kSlab);
  if (batch * slabs <= slab_grain || at::get_num_threads() == 1) {
    for (int64_t b = 0; b < batch; ++b) merge(b, 0, width);
    return;
  }
  at::parallel_for(0, batch * slabs, slab_grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      merge(i / slabs, i % slabs * kSlab, std::min(kSlab, width - i % slabs * kSlab));
  });
}

}  // namespace vitcop
