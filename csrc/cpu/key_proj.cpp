// key_proj and key_proj_norms: the key projection and the norms of its keys.
//
// The weight is cut into blocks of whole heads, the same for every sample and number of threads, and each
// block is one matrix product on one thread. So a sample's bits depend neither on its batch nor on the number
// of threads.
#include "cpu/norms.h"

#include <ATen/ops/addmm_cpu_dispatch.h>
#include <ATen/ops/mm_cpu_dispatch.h>
#include <torch/library.h>

// Part of torch's MKL, where it has one.
extern "C" int MKL_Set_Num_Threads_Local(int num_threads) __attribute__((weak));

namespace vitcop {
namespace {

// Makes the matrix products of this thread serial. MKL would split a sum over torch's number of threads even
// inside a parallel region, where one thread then adds up the parts: slower, and other bits for another
// number of threads.
class SerialBlas {
 public:
  SerialBlas() {
    at::get_num_threads();  // has torch set MKL's number now: a thread's first at:: call does
    if (MKL_Set_Num_Threads_Local) before_ = MKL_Set_Num_Threads_Local(1);
  }
  ~SerialBlas() {
    if (MKL_Set_Num_Threads_Local) MKL_Set_Num_Threads_Local(before_);
  }
  SerialBlas(const SerialBlas&) = delete;
  SerialBlas& operator=(const SerialBlas&) = delete;

 private:
  int before_ = 0;
};

constexpr int64_t kBlockColumns = 512;

// Whether each row begins a cache line. BLAS may sum in another order where rows do not, and a sample's place
// in its batch decides that: such rows are copied to memory of their own first.
bool on_lines(const Tensor& rows) {
  constexpr uintptr_t kLine = 64;
  const auto at = reinterpret_cast<uintptr_t>(rows.const_data_ptr());
  return rows.stride(1) == 1 && at % kLine == 0 && rows.stride(0) * rows.element_size() % kLine == 0;
}

Tensor aligned(const Tensor& rows) {
  return on_lines(rows) ? rows : rows.clone(at::MemoryFormat::Contiguous);
}

struct Projection {
  Tensor hidden;  // [B, N, C]
  Tensor weight;  // [H*d, C]
  Tensor bias;    // [H*d], may be undefined
  int64_t num_heads, head_dim, block_heads, num_blocks;

  Projection(const Tensor& hidden_states, const Tensor& w, const std::optional<Tensor>& b, int64_t heads)
      : hidden(hidden_states.dim() == 3 ? hidden_states.detach() : hidden_states.detach().unsqueeze(0)),
        weight(w.detach().contiguous()),
        bias(b ? b->detach().contiguous() : Tensor()),
        num_heads(heads),
        head_dim(w.size(0) / heads),
        block_heads(std::clamp<int64_t>(kBlockColumns / head_dim, 1, heads)),
        num_blocks((heads + block_heads - 1) / block_heads) {}

  int64_t batch() const { return hidden.size(0); }
  int64_t num_tokens() const { return hidden.size(1); }
  int64_t first_column(int64_t block) const { return block * block_heads * head_dim; }
  int64_t columns(int64_t block) const {
    return std::min(first_column(block + 1), weight.size(0)) - first_column(block);
  }

  // Calls f(sample, block) for all of them. Two iterations at least, so that every product runs inside a
  // parallel region and the BLAS uses one thread for it.
  template <class F>
  void for_each_block(const F& f) const {
    const int64_t total = batch() * num_blocks;
    at::parallel_for(0, std::max<int64_t>(total, 2), 1, [&](int64_t begin, int64_t end) {
      const SerialBlas serial;
      for (int64_t i = begin; i < std::min(end, total); ++i) f(i / num_blocks, i % num_blocks);
    });
  }

  // keys [N, columns(block)] = rows [N, C] times the block's weight, plus its bias.
  void multiply(Tensor& keys, const Tensor& rows, int64_t block) const {
    const Tensor x = aligned(rows);
    const Tensor w = weight.narrow(0, first_column(block), columns(block)).t();
    if (bias.defined())
      at::cpu::addmm_out(keys, bias.narrow(0, first_column(block), columns(block)), x, w);
    else
      at::cpu::mm_out(keys, x, w);
  }
};

void check(const char* op, const Tensor& hidden, const Tensor& weight, const std::optional<Tensor>& bias,
           int64_t num_heads, std::string_view heads) {
  check_floating(op, "hidden", hidden);
  check_dims(op, "hidden", hidden, 2, 3, "[B, N, C] or [N, C]");
  check_dims(op, "weight", weight, 2, 2, "[H*d, C]");
  check_same_dtype(op, "weight", weight, "hidden", hidden);
  check_same_device(op, "weight", weight, "hidden", hidden);
  check_shape(op, "weight", weight, {weight.size(0), hidden.size(-1)});
  check_at_least(op, "num_heads", num_heads, 1);
  TORCH_CHECK_VALUE(weight.size(0) % num_heads == 0 && weight.size(0) != 0, op,
                    ": num_heads: expected a divisor of weight.shape[0] (", weight.size(0), "), got ",
                    num_heads);
  if (bias) {
    check_same_dtype(op, "bias", *bias, "hidden", hidden);
    check_same_device(op, "bias", *bias, "hidden", hidden);
    check_shape(op, "bias", *bias, {weight.size(0)});
  }
  check_one_of(op, "heads", heads, {"l2", "mean"});
}

// --- key_proj
// ----------------------------------------------------------------------------------------------------

std::tuple<Tensor, Tensor> key_proj(const Tensor& hidden, const Tensor& weight,
                                    const std::optional<Tensor>& bias, int64_t num_heads,
                                    std::string_view heads) {
  constexpr const char* kOp = "key_proj";
  check(kOp, hidden, weight, bias, num_heads, heads);
  if (hidden.scalar_type() == at::kDouble) {
    const auto out = call_reference(kOp, hidden, weight, bias, num_heads, std::string(heads));
    return {out[0].toTensor(), out[1].toTensor()};
  }

  const Projection p(hidden, weight, bias, num_heads);
  const int64_t n = p.num_tokens(), width = weight.size(0), d = p.head_dim;
  const Tensor keys = empty({p.batch(), n, width}, hidden.scalar_type());
  const Tensor norms = empty(lead_and(hidden, 1, {}), at::kFloat);
  const Tensor laid_out = keys.view(lead_and(hidden, 1, {num_heads, d})).transpose(-3, -2);
  if (norms.numel() == 0) return {laid_out, norms};
  p.for_each_block([&](int64_t b, int64_t block) {
    Tensor out = keys.select(0, b).narrow(1, p.first_column(block), p.columns(block));
    Tensor product = on_lines(out) ? out : empty({n, p.columns(block)}, hidden.scalar_type());
    p.multiply(product, p.hidden.select(0, b), block);
    if (!product.is_same(out)) out.copy_(product);
  });

  dispatch_element(hidden.scalar_type(), [&](auto element) {
    using T = decltype(element);
    norm_keys(mutable_data<float>(norms), data<T>(keys), p.batch(), num_heads, n, d, n * width, d, width,
              heads == "mean");
  });
  return {laid_out, norms};
}

// --- key_proj_norms
// ----------------------------------------------------------------------------------------------

// y = x / sqrt(mean(x^2) + eps) * weight, rounded once.
template <class T>
void rms_norm(T* y, const T* x, const T* weight, int64_t width, double eps) {
  float squares;
  rows_of<T>().square_sums(&squares, x, 0, 1, 0, 1, width);
  if (trustworthy(squares)) {
    const double mean = static_cast<double>(squares) / static_cast<double>(width);
    rows_of<T>().scale(y, x, static_cast<float>(1.0 / std::sqrt(mean + eps)), weight, width);
  } else {
    const double norm = exact_norm(x, 0, 1, width, false);
    const double factor = 1.0 / std::sqrt(norm * norm / static_cast<double>(width) + eps);
    for (int64_t c = 0; c < width; ++c)
      y[c] = from_double<T>(to_double(x[c]) * factor * to_double(weight[c]));
  }
}

Tensor normalised(const Tensor& hidden, const Tensor& rms_weight, double eps) {
  const Tensor x = with_contiguous_rows(hidden), weight = rms_weight.contiguous();  // x [B, N, C]
  const Tensor y = empty(x.sizes(), x.scalar_type());
  const int64_t n = x.size(1), width = x.size(2);
  dispatch_element(x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    T* to = mutable_data<T>(y);
    at::parallel_for(0, x.size(0) * n, grain(width), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        rms_norm(to + i * width, data<T>(x) + i / n * x.stride(0) + i % n * x.stride(1), data<T>(weight),
                 width, eps);
    });
  });
  return y;
}

// Norms over all heads, a block of keys at a time while it is in the cache.
template <class T>
void l2_norms(float* norms, const Projection& p) {
  const int64_t n = p.num_tokens();
  std::vector<double> squares(p.batch() * p.num_blocks * n);
  p.for_each_block([&](int64_t b, int64_t block) {
    const int64_t columns = p.columns(block);
    Tensor keys = empty({n, columns}, p.hidden.scalar_type());
    p.multiply(keys, p.hidden.select(0, b), block);
    std::vector<float> sums(n);
    const T* k = data<T>(keys);
    rows_of<T>().square_sums(sums.data(), k, 0, 1, columns, n, columns);
    double* out = squares.data() + (b * p.num_blocks + block) * n;
    for (int64_t i = 0; i < n; ++i)
      out[i] =
          trustworthy(sums[i]) ? sums[i] : std::pow(exact_norm(k + i * columns, 0, 1, columns, false), 2);
  });
  for (int64_t b = 0; b < p.batch(); ++b)
    for (int64_t i = 0; i < n; ++i) {
      double total = 0;
      for (int64_t block = 0; block < p.num_blocks; ++block)
        total += squares[(b * p.num_blocks + block) * n + i];
      norms[b * n + i] = static_cast<float>(std::sqrt(total));
    }
}

// mean over heads h of x[h*d + r], in float32, for d rows of `width`.
template <class T>
Tensor head_mean(const Tensor& x, int64_t heads, int64_t width) {
  const int64_t d = x.size(0) / heads;
  const Tensor mean = empty({d, width}, at::kFloat);
  float* out = mutable_data<float>(mean);
  std::vector<int64_t> every_head(heads);
  for (int64_t h = 0; h < heads; ++h) every_head[h] = h;
  at::parallel_for(0, d, grain(heads * width), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      rows_of<T>().mean_in_float(out + r * width, data<T>(x) + r * width, d * width, every_head.data(), heads,
                                 nullptr, width);
  });
  return mean;
}

// The mean over heads is linear: project with the mean of the heads' weights, in float32.
template <class T>
void mean_norms(float* norms, const Projection& p) {
  constexpr int64_t kRows = 64;
  const int64_t n = p.num_tokens(), d = p.head_dim, blocks = (n + kRows - 1) / kRows,
                total = p.batch() * blocks;
  const Tensor weight = head_mean<T>(p.weight, p.num_heads, p.weight.size(1)).t();
  const Tensor bias = p.bias.defined() ? head_mean<T>(p.bias, p.num_heads, 1).view({d}) : Tensor();
  at::parallel_for(0, std::max<int64_t>(total, 2), 1, [&](int64_t begin, int64_t end) {
    const SerialBlas serial;
    for (int64_t i = begin; i < std::min(end, total); ++i) {
      const int64_t b = i / blocks, first = i % blocks * kRows, count = std::min(kRows, n - first);
      const Tensor x = aligned(p.hidden.select(0, b).narrow(0, first, count).to(at::kFloat));
      Tensor keys = empty({count, d}, at::kFloat);
      if (bias.defined())
        at::cpu::addmm_out(keys, bias, x, weight);
      else
        at::cpu::mm_out(keys, x, weight);
      norm_rows(norms + b * n + first, data<float>(keys), 0, 1, d, count, d, false);
    }
  });
}

Tensor key_proj_norms(const Tensor& hidden, const Tensor& weight, const std::optional<Tensor>& bias,
                      const std::optional<Tensor>& rms_weight, double rms_eps, int64_t num_heads,
                      std::string_view heads) {
  constexpr const char* kOp = "key_proj_norms";
  check(kOp, hidden, weight, bias, num_heads, heads);
  if (rms_weight) {
    check_same_dtype(kOp, "rms_weight", *rms_weight, "hidden", hidden);
    check_same_device(kOp, "rms_weight", *rms_weight, "hidden", hidden);
    check_shape(kOp, "rms_weight", *rms_weight, {hidden.size(-1)});
  }
  TORCH_CHECK_VALUE(rms_eps >= 0 && std::isfinite(rms_eps), kOp,
                    ": rms_eps: expected a finite number, at least 0, got ", rms_eps);
  if (hidden.scalar_type() == at::kDouble)
    return call_reference(kOp, hidden, weight, bias, rms_weight, rms_eps, num_heads, std::string(heads))[0]
        .toTensor();

  Tensor norms = empty(lead_and(hidden, 1, {}), at::kFloat);
  if (norms.numel() == 0) return norms;
  Projection p(hidden, weight, bias, num_heads);
  if (rms_weight) p.hidden = normalised(p.hidden, rms_weight->detach(), rms_eps);
  dispatch_element(hidden.scalar_type(), [&](auto element) {
    using T = decltype(element);
    (heads == "mean" ? mean_norms<T> : l2_norms<T>)(mutable_data<float>(norms), p);
  });
  return norms;
}

}  // namespace

TORCH_LIBRARY_IMPL(vitcop, CPU, m) {
  m.impl("key_proj", key_proj);
  m.impl("key_proj_norms", key_proj_norms);
}

}  // namespace vitcop
