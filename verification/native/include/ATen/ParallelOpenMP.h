// Stands in for torch's header of this name in builds for the sanitizers: at::parallel_for on std::thread. A
// sanitizer knows what thread creation and joining order; of the barriers inside libgomp, which nobody
// instruments, it knows nothing, and would call every result of a parallel region a race. The division of
// the range is that of the original. No thread is kept, so any two chunks are concurrent.
#pragma once

#include <algorithm>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#define INTRA_OP_PARALLEL

namespace at::internal {

template <typename F>
inline void invoke_parallel(int64_t begin, int64_t end, int64_t grain_size, const F& f) {
  int64_t num_threads = at::get_num_threads();
  if (grain_size > 0) num_threads = std::min(num_threads, divup((end - begin), grain_size));
  const int64_t chunk_size = divup((end - begin), num_threads);
  std::exception_ptr error;
  std::mutex error_mutex;
  const auto run = [&](int64_t tid) {
    const int64_t begin_tid = begin + tid * chunk_size;
    if (begin_tid >= end) return;
    try {
      internal::ThreadIdGuard tid_guard(tid);
      f(begin_tid, std::min(end, chunk_size + begin_tid));
    } catch (...) {
      const std::lock_guard<std::mutex> lock(error_mutex);
      if (!error) error = std::current_exception();
    }
  };
  std::vector<std::thread> threads;
  for (int64_t tid = 1; tid < num_threads; ++tid) threads.emplace_back(run, tid);
  run(0);
  for (std::thread& thread : threads) thread.join();
  if (error) std::rethrow_exception(error);
}

}  // namespace at::internal
