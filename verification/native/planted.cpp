// Errors on purpose, compiled with the flags of the kernels: a sanitizer run that reports none of these
// proves nothing.
#include <ATen/Parallel.h>

#include <cstdint>
#include <memory>
#include <vector>

namespace {

int64_t sum(const std::vector<int64_t>& values) {
  int64_t total = 0;
  for (const int64_t value : values) total += value;
  return total;
}

}  // namespace

extern "C" {

__attribute__((visibility("default"))) int64_t out_of_bounds_read(int64_t size) {
  const std::unique_ptr<int64_t[]> row(new int64_t[size]());
  int64_t total = 0;
  for (int64_t i = 0; i <= size; ++i) total += row[i];  // one too far
  return total;
}

__attribute__((visibility("default"))) int64_t signed_overflow(int64_t size) {
  return 64 * size;  // the cost of a row, say, of 2^62 tokens
}

// Two threads add to one counter; the right way is next to it.
__attribute__((visibility("default"))) int64_t data_race(int64_t size) {
  int64_t total = 0;
  at::parallel_for(0, size, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) total += i;
  });
  return total;
}

__attribute__((visibility("default"))) int64_t no_error(int64_t size) {
  std::vector<int64_t> squares(size);
  at::parallel_for(0, size, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) squares[i] = i * i;
  });
  return sum(squares);
}
}
