// attention_saliency (Eq. 1): softmax attention of a few query rows, summed over rows and heads.
#include "cpu/common.h"
#include "cpu/rows.h"

#include <torch/library.h>

namespace vitcop {
namespace {

constexpr const char* kOp = "attention_saliency";
// Query rows that share one pass over a key head. Fixed, so that the split never depends on the number of
// threads.
constexpr int64_t kRowsPerTile = 32;

void check(const Tensor& query, const Tensor& key, const std::optional<Tensor>& mask,
           const std::optional<double>& scale) {
  check_floating(kOp, "query", query);
  check_dims(kOp, "query", query, 3, 4, "[B, Hq, M, d] or [Hq, M, d]");
  check_same_dtype(kOp, "key", key, "query", query);
  check_same_device(kOp, "key", key, "query", query);
  check_dims(kOp, "key", key, query.dim(), query.dim(), "[B, Hkv, N, d] or [Hkv, N, d], as query");
  check_shape(kOp, "key", key, lead_and(query, 3, {key.size(-3), key.size(-2), query.size(-1)}));
  TORCH_CHECK_VALUE(key.size(-3) >= 1 && query.size(-3) % key.size(-3) == 0, kOp,
                    ": key.shape[-3] (heads): expected a divisor of the query heads (", query.size(-3),
                    "), got ", key.size(-3));
  TORCH_CHECK_VALUE(!scale || std::isfinite(*scale), kOp, ": scale: expected a finite number, got ", *scale);
  if (mask) {
    check_dtype(kOp, "mask", *mask, at::kBool);
    check_same_device(kOp, "mask", *mask, "query", query);
    check_shape(kOp, "mask", *mask, lead_and(query, 3, {query.size(-2), key.size(-2)}));
  }
}

// saliency [B, N] of query [B, Hq, M, d], key [B, Hkv, N, d], mask [B, M, N].
template <class T>
void saliency_of(float* saliency, const Tensor& query, const Tensor& key, const bool* mask, float scale) {
  const int64_t batch = batch_of(query, 4), key_heads = key.size(-3), n = key.size(-2), dim = key.size(-1);
  const int64_t m = query.size(-2),
                rows = query.size(-3) / key_heads * m;  // query rows that see one key head
  const int64_t tiles = (rows + kRowsPerTile - 1) / kRowsPerTile, parts = key_heads * tiles;
  const T* q = data<T>(query);
  const T* k = data<T>(key);
  const Tensor partial = empty({batch * parts, n}, at::kFloat);
  float* partials = mutable_data<float>(partial);

  at::parallel_for(0, batch * parts, grain(kRowsPerTile * n * dim), [&](int64_t begin, int64_t end) {
    // A tensor, for its alignment: vectors across two cache lines would halve the kernel's speed.
    const Tensor scratch = empty({attention_scratch(kRowsPerTile, n, dim)}, at::kFloat);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / parts, head = i % parts / tiles, first = i % tiles * kRowsPerTile;
      const T* query_rows[kRowsPerTile];
      const bool* mask_rows[kRowsPerTile];
      const int64_t count = std::min(kRowsPerTile, rows - first);
      for (int64_t r = 0; r < count; ++r) {
        const int64_t query_head = head * (rows / m) + (first + r) / m, row = (first + r) % m;
        query_rows[r] =
            q + b * batch_stride(query, 4) + query_head * query.stride(-3) + row * query.stride(-2);
        mask_rows[r] = mask ? mask + (b * m + row) * n : nullptr;
      }
      rows_of<T>().attention({.key = k + b * batch_stride(key, 4) + head * key.stride(-3),
                              .key_stride = key.stride(-2),
                              .num_keys = n,
                              .dim = dim,
                              .query = query_rows,
                              .mask = mask ? mask_rows : nullptr,
                              .num_rows = count,
                              .scale = scale,
                              .scratch = mutable_data<float>(scratch),
                              .out = partials + i * n});
    }
  });

  at::parallel_for(0, batch, grain(parts * n), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      float* out = saliency + b * n;
      std::fill_n(out, n, 0.0f);
      for (int64_t p = b * parts; p < (b + 1) * parts; ++p)
        for (int64_t j = 0; j < n; ++j) out[j] += partials[p * n + j];
    }
  });
}

Tensor attention_saliency(const Tensor& query, const Tensor& key, const std::optional<Tensor>& mask,
                          std::optional<double> scale) {
  check(query, key, mask, scale);
  if (query.scalar_type() == at::kDouble) return call_reference(kOp, query, key, mask, scale)[0].toTensor();

  const Tensor q = with_contiguous_rows(query), k = with_contiguous_rows(key);
  const Tensor allowed = mask ? mask->contiguous() : Tensor();
  const double factor =
      scale.value_or(1.0 / std::sqrt(static_cast<double>(std::max<int64_t>(query.size(-1), 1))));
  Tensor saliency = empty(lead_and(key, 3, {key.size(-2)}), at::kFloat);
  if (saliency.numel() == 0) return saliency;
  dispatch_element(q.scalar_type(), [&](auto element) {
    saliency_of<decltype(element)>(mutable_data<float>(saliency), q, k, mask ? data<bool>(allowed) : nullptr,
                                   static_cast<float>(factor));
  });
  return saliency;
}

}  // namespace

TORCH_LIBRARY_IMPL(vitcop, CPU, m) {
  m.impl("attention_saliency", attention_saliency);
}

}  // namespace vitcop
