#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>

namespace vitcop::vic {

// f(item, worker) for every item, handed out one by one; serial unless `parallel`. Who gets which item never
// shows in the result.
template <class F>
void for_each(bool parallel, int64_t items, const F& f) {
  const int64_t workers = parallel ? std::min<int64_t>(at::get_num_threads(), items) : 1;
  if (workers <= 1) {
    for (int64_t item = 0; item < items; ++item) f(item, 0);
    return;
  }
  std::atomic<int64_t> next{0};
  at::parallel_for(0, workers, 1, [&](int64_t worker, int64_t) {
    for (int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < items;) f(item, worker);
  });
}

}  // namespace vitcop::vic
