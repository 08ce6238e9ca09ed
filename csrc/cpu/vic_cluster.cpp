// vic_cluster and vic_cluster_varlen: density-peak clustering. Phases over one sample (vic/sample.cpp): pack
// the tokens, q = |x_i - x_j|^2 by Gram tiles of the upper triangle, densities, ranks, nearest denser tokens,
// centres, labels.
#include "cpu/common.h"
#include "cpu/isa.h"
#include "cpu/vic/sample.h"
#include "cpu/vic/scratch.h"
#include "cpu/vic/team.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <numeric>

namespace vitcop {
namespace {

using std::optional;
using Result = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// The options as the schema has them.
struct Words {
  std::string_view semantics, metric;
  double dist_scale;
  std::string_view density;
  int64_t knn;
  optional<bool> include_self;
  std::string_view assign, root_delta;
};

std::string number(double x) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", x);
  return text;
}

void check_positive_finite(const char* op, const char* argument, double x) {
  TORCH_CHECK_VALUE(x > 0 && std::isfinite(x), op, ": ", argument,
                    ": expected a positive finite number, got ", number(x));
}

void check_int(const char* op, const char* argument, const Tensor& t, const char* expected) {
  TORCH_CHECK_TYPE(t.scalar_type() == at::kLong || t.scalar_type() == at::kInt, op, ": ", argument,
                   ": expected ", expected, ", got ", name_of(t.scalar_type()));
}

void check_options(const char* op, double d_c, double tau, const Words& w) {
  check_positive_finite(op, "d_c", d_c);
  TORCH_CHECK_VALUE(tau >= 0, op, ": tau: expected a number, at least 0 (inf: no spatial limit), got ",
                    number(tau));
  check_one_of(op, "semantics", w.semantics, {"paper", "released"});
  check_one_of(op, "metric", w.metric, {"l2", "cosine"});
  TORCH_CHECK_VALUE(w.dist_scale >= 1e-100 && w.dist_scale <= 1e100, op,
                    ": dist_scale: expected a number from 1e-100 to 1e100, got ", number(w.dist_scale));
  check_one_of(op, "density", w.density, {"gaussian", "knn"});
  check_at_least(op, "knn", w.knn, 1);
  check_one_of(op, "assign", w.assign, {"parent", "nearest"});
  check_one_of(op, "root_delta", w.root_delta, {"inf", "max"});
}

// The distances of all pairs of so many tokens stay in memory: 151 MB. For up to sqrt(2) times as many, those
// of the upper triangle do. For more, the products of pairs without a place are taken for densities and again
// for parents, and not for (i, j) and (j, i) at once: up to four times over.
int64_t stored_tokens() {
  const char* limit = std::getenv("VITCOP_STORED_TOKENS");
  return limit ? std::max(std::atoll(limit), 0LL) : 6144;
}

vic::Options options(const Words& w, double d_c, double tau, int64_t num_centers) {
  vic::Options o{};
  o.released = w.semantics == "released";
  o.cosine = w.metric == "cosine";
  o.knn = w.density == "knn";
  o.self = w.include_self.value_or(o.released);
  o.nearest = w.assign == "nearest";
  o.root_max = w.root_delta == "max";
  o.neighbours = w.knn;
  o.d_c = d_c;
  o.tau = tau;
  o.dist_scale = w.dist_scale;
  o.num_centers = num_centers;
  o.stored_tokens = stored_tokens();
  return o;
}

template <class T>
double read(const void* data, int64_t at) {
  return static_cast<double>(static_cast<const T*>(data)[at]);
}

// Row and column strides and the reader of positions; sample 0.
vic::Places places(const optional<Tensor>& positions, double tau) {
  vic::Places p;
  if (!positions || std::isinf(tau)) return p;
  const Tensor& t = *positions;
  p = {data<char>(t), t.stride(-2), t.stride(-1), t.size(-1), nullptr};
  switch (t.scalar_type()) {
    case at::kFloat:
      p.read = read<float>;
      break;
    case at::kDouble:
      p.read = read<double>;
      break;
    case at::kHalf:
      p.read = read<c10::Half>;
      break;
    default:
      p.read = read<c10::BFloat16>;
      break;
  }
  return p;
}

// n tokens from element `first` on.
vic::Tokens tokens(const Tensor& features, int64_t first, int64_t n) {
  const auto dtype = features.scalar_type();
  return {data<char>(features) + first * static_cast<int64_t>(features.element_size()),
          features.stride(-2),
          nullptr,
          n,
          features.size(-1),
          dtype == at::kFloat  ? vic::Dtype::F32
          : dtype == at::kHalf ? vic::Dtype::F16
                               : vic::Dtype::BF16};
}

// Rows in one piece, copied if they are not.
Tensor with_rows(const Tensor& t) {
  return t.stride(-1) == 1 || t.size(-1) <= 1 ? t : t.contiguous();
}

const vic::Kernels& kernels_for(at::ScalarType dtype, bool cosine) {
#ifdef VITCOP_HAVE_AVX512_BF16
  if (dtype == at::kBFloat16 && !cosine && bf16_dot_pays()) return vic::kAvx512Bf16;
#endif
  switch (cpu_isa()) {
#ifdef VITCOP_HAVE_AVX512
    case Isa::AVX512_BF16:
    case Isa::AVX512:
      return vic::kAvx512;
#endif
#ifdef VITCOP_HAVE_AVX2
    case Isa::AVX2:
      return vic::kAvx2;
#endif
    default:
      return vic::kPortable;
  }
}

// Scratch of a call. One block of moderate size stays with the process between calls: fresh pages would cost
// a small sample several percent of its time.
class Memory {
 public:
  explicit Memory(size_t bytes) : block_(kept().exchange(nullptr)) {
    if (block_ && block_->bytes >= bytes) return;
    delete block_;
    block_ = new Block{bytes, c10::GetCPUAllocator()->allocate(bytes)};
  }
  ~Memory() {
    Block* expected = nullptr;
    if (block_->bytes > kKeep || !kept().compare_exchange_strong(expected, block_)) delete block_;
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  char* data() const { return static_cast<char*>(block_->data.get()); }

 private:
  static constexpr size_t kKeep = size_t{16} << 20;
  struct Block {
    size_t bytes;
    at::DataPtr data;
  };
  static std::atomic<Block*>& kept() {
    static std::atomic<Block*> block{nullptr};
    return block;
  }
  Block* block_;
};

constexpr int64_t kAlone = 2048;  // larger samples take all threads

// Large samples, and those left over when the others are dealt to the threads, take all threads one after
// another; the rest run side by side, a thread each.
void cluster(std::vector<vic::Sample> samples, const vic::Options& o, const vic::Kernels& kernels) {
  if (samples.empty()) return;
  std::stable_sort(samples.begin(), samples.end(),
                   [](const auto& a, const auto& b) { return a.tokens.n > b.tokens.n; });
  const int64_t count = static_cast<int64_t>(samples.size()), threads = at::get_num_threads();
  int64_t alone = 0;
  while (alone < count && samples[alone].tokens.n > kAlone) ++alone;
  alone =
      o.released ? count : alone + (count - alone) % threads;  // released calls torch, not for worker threads

  // Not the longest sample alone decides: the distances of all pairs are kept up to a limit, and padding may
  // leave that few of more.
  const auto largest = [&](int64_t first, int64_t end, int64_t workers) {
    size_t bytes = 0;
    for (int64_t i = first; i < end; ++i) {
      const vic::Sample& s = samples[i];
      for (const int64_t n : {s.tokens.n, s.valid ? std::min(s.tokens.n, o.stored_tokens) : 0})
        bytes = std::max(bytes, scratch_size(n, s.tokens.d, s.places.dims, o, kernels, workers));
    }
    return bytes;
  };
  const size_t slot = largest(alone, count, 1), whole = largest(0, alone, threads);
  const Memory memory(std::max(slot * threads, whole));
  char* const base = memory.data();
  for (int64_t i = 0; i < alone; ++i) cluster_sample(samples[i], o, kernels, base, true);
  vic::for_each(true, count - alone, [&](int64_t i, int64_t worker) {
    cluster_sample(samples[alone + i], o, kernels, base + worker * slot, false);
  });
}

Result results(at::IntArrayRef lead, at::IntArrayRef centers) {
  return {empty(lead, at::kLong), empty(centers, at::kLong), empty(lead, at::kLong), empty(lead, at::kFloat),
          empty(lead, at::kFloat)};
}

int64_t clamped_count(const Tensor& counts, int64_t b, int64_t num_centers) {
  const int64_t at = b * (counts.dim() > 0 ? counts.stride(0) : 0);
  const int64_t count =
      counts.scalar_type() == at::kInt ? data<int32_t>(counts)[at] : data<int64_t>(counts)[at];
  return std::clamp<int64_t>(count, 1, num_centers);
}

Result from_stack(const torch::jit::Stack& s) {
  return {s[0].toTensor(), s[1].toTensor(), s[2].toTensor(), s[3].toTensor(), s[4].toTensor()};
}

Result vic_cluster(const Tensor& features, const optional<Tensor>& positions, double d_c, double tau,
                   int64_t num_centers, const optional<Tensor>& valid, const optional<Tensor>& center_counts,
                   std::string_view semantics, std::string_view metric, double dist_scale,
                   std::string_view density, int64_t knn, optional<bool> include_self,
                   std::string_view assign, std::string_view root_delta) {
  constexpr const char* kOp = "vic_cluster";
  const Words words{semantics, metric, dist_scale, density, knn, include_self, assign, root_delta};
  check_floating(kOp, "features", features);
  check_dims(kOp, "features", features, 2, 3, "[B, N, D] or [N, D]");
  const int64_t n = features.size(-2);
  check_at_least(kOp, "features.shape[-2] (tokens)", n, 1);
  const std::vector<int64_t> lead = lead_and(features, 1, {});
  if (positions) {
    check_floating(kOp, "positions", *positions);
    check_same_device(kOp, "positions", *positions, "features", features);
    check_dims(kOp, "positions", *positions, 2, features.dim(), "[N, P], or [B, N, P] with batched features");
    std::vector<int64_t> expected = positions->dim() == features.dim() ? lead : std::vector<int64_t>{n};
    expected.push_back(positions->size(-1));
    check_shape(kOp, "positions", *positions, expected);
  }
  check_in_range(kOp, "num_centers", num_centers, 1, n);
  if (valid) {
    check_dtype(kOp, "valid", *valid, at::kBool);
    check_same_device(kOp, "valid", *valid, "features", features);
    check_shape(kOp, "valid", *valid, lead);
  }
  if (center_counts) {
    check_int(kOp, "center_counts", *center_counts, "int64 or int32");
    check_same_device(kOp, "center_counts", *center_counts, "features", features);
    check_shape(kOp, "center_counts", *center_counts, lead_and(features, 2, {}));
  }
  check_options(kOp, d_c, tau, words);
  if (features.scalar_type() == at::kDouble) {
    return from_stack(call_reference(kOp, features, positions, d_c, tau, num_centers, valid, center_counts,
                                     std::string(semantics), std::string(metric), dist_scale,
                                     std::string(density), knn, include_self, std::string(assign),
                                     std::string(root_delta)));
  }

  vic::Options o = options(words, d_c, tau, num_centers);
  o.neighbours = std::min(o.neighbours, n);
  const Tensor rows = with_rows(features);
  const Result result = results(lead, lead_and(features, 2, {num_centers}));
  const auto& [labels, centers, parent, rho, delta] = result;
  std::vector<vic::Sample> samples(batch_of(features, 3));
  for (int64_t b = 0; b < static_cast<int64_t>(samples.size()); ++b) {
    vic::Sample& s = samples[b];
    s.tokens = tokens(rows, b * batch_stride(rows, 3), n);
    s.valid = valid ? data<bool>(*valid) + b * batch_stride(*valid, 2) : nullptr;
    s.valid_stride = valid ? valid->stride(-1) : 0;
    s.places = places(positions, tau);
    if (s.places.data && positions->dim() == 3)
      s.places.data =
          static_cast<const char*>(s.places.data) + b * positions->stride(0) * positions->element_size();
    s.count = center_counts ? clamped_count(*center_counts, b, num_centers) : num_centers;
    s.labels = mutable_data<int64_t>(labels) + b * n;
    s.centers = mutable_data<int64_t>(centers) + b * num_centers;
    s.parent = mutable_data<int64_t>(parent) + b * n;
    s.rho = mutable_data<float>(rho) + b * n;
    s.delta = mutable_data<float>(delta) + b * n;
  }
  cluster(std::move(samples), o, kernels_for(features.scalar_type(), o.cosine));
  return result;
}

// Boundaries of the samples, ascending from 0 to total, no sample longer than max_seqlen.
std::vector<int64_t> boundaries(const Tensor& cu_seqlens, int64_t total, int64_t max_seqlen) {
  std::vector<int64_t> at(cu_seqlens.size(0));
  const int64_t stride = cu_seqlens.stride(0);
  for (size_t b = 0; b < at.size(); ++b) {
    const int64_t i = static_cast<int64_t>(b) * stride;
    at[b] =
        cu_seqlens.scalar_type() == at::kInt ? data<int32_t>(cu_seqlens)[i] : data<int64_t>(cu_seqlens)[i];
    const int64_t before = b > 0 ? at[b - 1] : 0;
    const bool good = b == 0 ? at[b] == 0 : at[b] >= before && at[b] <= total && at[b] - before <= max_seqlen;
    TORCH_CHECK_VALUE(good && (b + 1 < at.size() || at[b] == total),
                      "vic_cluster_varlen: cu_seqlens: expected ascending "
                      "from 0 to ",
                      total, " in steps of at most max_seqlen (", max_seqlen, "), got ", at[b], " after ",
                      before, " at index ", b);
  }
  return at;
}

Result vic_cluster_varlen(const Tensor& features, const optional<Tensor>& positions, const Tensor& cu_seqlens,
                          int64_t max_seqlen, double d_c, double tau, int64_t num_centers,
                          const optional<Tensor>& center_counts, std::string_view semantics,
                          std::string_view metric, double dist_scale, std::string_view density, int64_t knn,
                          optional<bool> include_self, std::string_view assign, std::string_view root_delta) {
  constexpr const char* kOp = "vic_cluster_varlen";
  const Words words{semantics, metric, dist_scale, density, knn, include_self, assign, root_delta};
  check_floating(kOp, "features", features);
  check_dims(kOp, "features", features, 2, 2, "[T, D]");
  const int64_t total = features.size(0);
  check_at_least(kOp, "features.shape[0] (tokens)", total, 1);
  if (positions) {
    check_floating(kOp, "positions", *positions);
    check_same_device(kOp, "positions", *positions, "features", features);
    check_dims(kOp, "positions", *positions, 2, 2, "[T, P]");
    check_shape(kOp, "positions", *positions, {total, positions->size(1)});
  }
  check_int(kOp, "cu_seqlens", cu_seqlens, "int32 or int64");
  check_same_device(kOp, "cu_seqlens", cu_seqlens, "features", features);
  check_dims(kOp, "cu_seqlens", cu_seqlens, 1, 1, "[B+1]");
  check_at_least(kOp, "cu_seqlens.shape[0] (B+1)", cu_seqlens.size(0), 2);
  check_at_least(kOp, "max_seqlen", max_seqlen, 1);
  check_in_range(kOp, "num_centers", num_centers, 1, max_seqlen);
  const int64_t batch = cu_seqlens.size(0) - 1;
  if (center_counts) {
    check_int(kOp, "center_counts", *center_counts, "int64 or int32");
    check_same_device(kOp, "center_counts", *center_counts, "features", features);
    check_shape(kOp, "center_counts", *center_counts, {batch});
  }
  check_options(kOp, d_c, tau, words);
  const std::vector<int64_t> at = boundaries(cu_seqlens, total, max_seqlen);
  if (features.scalar_type() == at::kDouble) {
    return from_stack(call_reference(kOp, features, positions, cu_seqlens, max_seqlen, d_c, tau, num_centers,
                                     center_counts, std::string(semantics), std::string(metric), dist_scale,
                                     std::string(density), knn, include_self, std::string(assign),
                                     std::string(root_delta)));
  }

  vic::Options o = options(words, d_c, tau, num_centers);
  o.neighbours = std::min(o.neighbours, total);
  const Tensor rows = with_rows(features);
  const Result result = results({total}, {batch, num_centers});
  const auto& [labels, centers, parent, rho, delta] = result;
  std::vector<vic::Sample> samples(batch);
  for (int64_t b = 0; b < batch; ++b) {
    vic::Sample& s = samples[b];
    s.tokens = tokens(rows, at[b] * rows.stride(0), at[b + 1] - at[b]);
    s.places = places(positions, tau);
    if (s.places.data)
      s.places.data =
          static_cast<const char*>(s.places.data) + at[b] * positions->stride(0) * positions->element_size();
    s.count = center_counts ? clamped_count(*center_counts, b, num_centers) : num_centers;
    s.labels = mutable_data<int64_t>(labels) + at[b];
    s.centers = mutable_data<int64_t>(centers) + b * num_centers;
    s.parent = mutable_data<int64_t>(parent) + at[b];
    s.rho = mutable_data<float>(rho) + at[b];
    s.delta = mutable_data<float>(delta) + at[b];
  }
  cluster(std::move(samples), o, kernels_for(features.scalar_type(), o.cosine));
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(vitcop, CPU, m) {
  m.impl("vic_cluster", vic_cluster);
  m.impl("vic_cluster_varlen", vic_cluster_varlen);
}

}  // namespace vitcop
