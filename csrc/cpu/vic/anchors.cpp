#include "cpu/vic/anchors.h"

#include "cpu/vic/elements.h"
#include "cpu/vic/team.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

namespace vitcop::vic {
namespace {

constexpr int64_t kSampledRows = 8, kBlock = 64;
constexpr float kWorth = 4;  // offset over spread, squared, from which on a channel is anchored

// Mean and squared spread of each channel over a few rows.
template <class T>
void sample(const Tokens& tokens, float* mean, float* spread) {
  const int64_t d = tokens.d, rows = std::min(tokens.n, kSampledRows);
  std::fill_n(mean, d, 0.0f);
  std::fill_n(spread, d, 0.0f);
  const T* first = static_cast<const T*>(tokens.row(0));
  for (int64_t r = 1; r < rows; ++r) {
    const T* row = static_cast<const T*>(tokens.row(r * tokens.n / rows));
    for (int64_t k = 0; k < d; ++k) {
      const float gap = to_float(row[k]) - to_float(first[k]);
      mean[k] += gap;
      spread[k] += gap * gap;
    }
  }
  const float share = 1.0f / static_cast<float>(rows);
  for (int64_t k = 0; k < d; ++k) {
    const float m = mean[k] * share;
    mean[k] = to_float(first[k]) + m;
    spread[k] = spread[k] * share - m * m;
  }
}

// Nothing is lost in x - c. Bad tokens have no say.
template <bool kHalves>
bool exact(float x, float c) {
  const float gap = x - c;
  if constexpr (kHalves) {
    if ((std::bit_cast<uint32_t>(gap) & 0xffff) != 0) return x - x != 0;
  }
  const float taken = gap - x;
  const float lost = (x - (gap - taken)) + (-c - taken);
  return lost == 0 || x - x != 0;
}

template <class T, bool kHalves>
void verify(const Tokens& tokens, int64_t begin, int64_t end, float* anchor) {
  bool keep[kBlock];
  std::fill_n(keep, kBlock, true);
  for (int64_t i = 0; i < tokens.n; ++i) {
    const T* row = static_cast<const T*>(tokens.row(i));
    for (int64_t k = begin; k < end; ++k) keep[k - begin] &= exact<kHalves>(to_float(row[k]), anchor[k]);
  }
  for (int64_t k = begin; k < end; ++k)
    if (!keep[k - begin]) anchor[k] = 0;
}

template <class T>
void normalize_row(const T* row, int64_t d, float* unit) {
  double sums[8] = {};
  for (int64_t k = 0; k < d; ++k) sums[k % 8] += to_double(row[k]) * to_double(row[k]);
  const double norm =
      std::sqrt(((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7])));
  if (!std::isfinite(norm)) {
    std::fill_n(unit, d, std::numeric_limits<float>::quiet_NaN());
  } else {
    for (int64_t k = 0; k < d; ++k) unit[k] = norm > 0 ? static_cast<float>(to_double(row[k]) / norm) : 0.0f;
  }
}

}  // namespace

const float* anchors(const Tokens& tokens, bool halves, bool parallel, float* anchor, float* work) {
  const int64_t d = tokens.d;
  with_elements(tokens.dtype, [&](auto element) { sample<decltype(element)>(tokens, anchor, work); });
  float offsets[8] = {}, spreads[8] = {};
  for (int64_t k = 0; k < d; ++k) {
    // bfloat16 precision: few bits, so that few differences need more than there are
    const float rounded = std::bit_cast<float>((std::bit_cast<uint32_t>(anchor[k]) + 0x8000) & 0xffff0000);
    const float energy = anchor[k] * anchor[k];
    const bool worth = energy > kWorth * work[k];
    anchor[k] = worth ? rounded : 0;
    offsets[k % 8] += worth ? energy : 0;
    spreads[k % 8] += work[k];
  }
  const float offset = std::accumulate(offsets, offsets + 8, 0.0f);
  const float total = std::accumulate(spreads, spreads + 8, 0.0f);
  if (!(offset > total) || !(offset < kHuge)) return nullptr;

  std::fill(anchor + d, anchor + (d + 31) / 32 * 32, 0.0f);
  for_each(parallel, (d + kBlock - 1) / kBlock, [&](int64_t block, int64_t) {
    const int64_t begin = block * kBlock, end = std::min(begin + kBlock, d);
    with_elements(tokens.dtype, [&](auto element) {
      using T = decltype(element);
      halves ? verify<T, true>(tokens, begin, end, anchor) : verify<T, false>(tokens, begin, end, anchor);
    });
  });
  return anchor;
}

void normalize(const Tokens& tokens, bool parallel, float* unit) {
  for_each(parallel, tokens.n, [&](int64_t i, int64_t) {
    with_elements(tokens.dtype, [&](auto element) {
      normalize_row(static_cast<const decltype(element)*>(tokens.row(i)), tokens.d, unit + i * tokens.d);
    });
  });
}

}  // namespace vitcop::vic
