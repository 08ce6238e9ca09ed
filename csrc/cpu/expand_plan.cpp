// expand_plan: from a plan for the visual tokens of a sequence to the plan of the whole sequence. Serial per
// sample, O(n + V).
#include "cpu/common.h"

#include <torch/library.h>

#include <algorithm>

namespace vitcop {
namespace {

constexpr const char* kOp = "expand_plan";
constexpr int64_t kNone = -1;  // of no segment; of a slot: no visual token
constexpr int64_t kText = -2;  // a segment of its own
constexpr int64_t kPad = -3;   // padding

void check(const Tensor& slots, const Tensor& anchors, const std::optional<Tensor>& perm,
           const std::optional<Tensor>& offsets, const std::optional<Tensor>& merged,
           const std::optional<Tensor>& valid, int64_t num_slots, int64_t out_len) {
  check_dtype(kOp, "slots", slots, at::kLong);
  check_dims(kOp, "slots", slots, 1, 2, "[B, V] or [V]");
  check_dtype(kOp, "anchors", anchors, at::kLong);
  check_same_device(kOp, "anchors", anchors, "slots", slots);
  check_dims(kOp, "anchors", anchors, slots.dim(), slots.dim(), "[B, S] or [S], as slots");
  check_shape(kOp, "anchors", anchors, lead_and(slots, 1, {anchors.size(-1)}));
  check_at_least(kOp, "num_slots", num_slots, 0);
  check_in_range(kOp, "out_len", out_len, 0, num_slots);
  const int64_t segments = anchors.size(-1);
  const auto check_part = [&](const char* name, const std::optional<Tensor>& t, at::ScalarType dtype,
                              int64_t length) {
    if (!t) return;
    check_dtype(kOp, name, *t, dtype);
    check_same_device(kOp, name, *t, "slots", slots);
    check_shape(kOp, name, *t, lead_and(slots, 1, {length}));
  };
  TORCH_CHECK_VALUE(offsets || !perm, kOp, ": offsets: expected a tensor with perm, got None");
  TORCH_CHECK_VALUE(perm || !offsets, kOp, ": perm: expected a tensor with offsets, got None");
  check_part("perm", perm, at::kLong, slots.size(-1));
  check_part("offsets", offsets, at::kLong, one_more(segments));
  check_part("merged", merged, at::kBool, segments);
  check_part("valid", valid, at::kBool, num_slots);
}

// One sample's part of the inputs (null: not given) and of the outputs; see ops/expand_plan/op.py.
struct Sample {
  int64_t num_tokens, num_segments, num_slots, out_len;
  const int64_t* slots;
  const int64_t* anchors;
  const int64_t* perm;
  const int64_t* offsets;
  const bool* merged;
  const bool* valid;

  int64_t* out_perm;
  int64_t* out_offsets;
  int64_t* out_anchors;
  bool* out_merged;
  int64_t* column;
  int64_t* out_slots;
  int64_t* removed;

  void expand() const {
    // Of each slot: its segment (kText, kPad, kNone), and which segment it stands for.
    std::vector<int64_t> owner(num_slots), stands(num_slots, kNone);
    for (int64_t p = 0; p < num_slots; ++p) owner[p] = valid && !valid[p] ? kPad : kText;
    for (int64_t v = 0; v < num_tokens; ++v) {
      TORCH_CHECK_VALUE(slots[v] >= -1 && slots[v] < num_slots, kOp, ": slots: expected slots in [0, ",
                        num_slots, ") or -1, got ", slots[v]);
      if (slots[v] < 0) continue;
      TORCH_CHECK_VALUE(owner[slots[v]] != kNone, kOp, ": slots: expected every slot once, got ", slots[v],
                        " twice");
      owner[slots[v]] = kNone;
    }
    for (int64_t s = 0; s < num_segments; ++s) place(s, owner, stands);

    int64_t count = 0, total = 0, tail = 0, gone = 0;
    for (int64_t p = 0; p < num_slots; ++p) {
      count += is_anchor(p, owner, stands);
      tail += owner[p] >= 0 || owner[p] == kText;
    }
    TORCH_CHECK_VALUE(count <= out_len, kOp, ": out_len: expected at least the ", count,
                      " tokens that come out, got ", out_len);
    const int64_t lead = out_len - count;
    std::fill_n(out_offsets, lead, 0);
    std::fill_n(out_anchors, lead, -1);
    std::fill_n(out_merged, lead, false);
    std::fill_n(removed, lead, 0);
    int64_t at = lead;
    for (int64_t p = 0; p < num_slots; ++p) {
      column[p] = out_len;
      if (is_anchor(p, owner, stands)) {
        const int64_t s = stands[p];
        out_offsets[at] = total;
        out_anchors[at] = p;
        out_merged[at] = s >= 0 && merged && merged[s];
        removed[at] = gone;
        if (s < 0)
          out_perm[total++] = p;
        else
          total += emit(s, total);
        column[p] = at++;
      } else {
        gone += owner[p] != kPad;
      }
      if (owner[p] == kNone || owner[p] == kPad) out_perm[tail++] = p;
    }
    out_offsets[out_len] = total;
    removed[out_len] = gone;
    for (int64_t s = 0; s < num_segments; ++s) out_slots[s] = exists(s) ? column[slots[anchors[s]]] : -1;
  }

 private:
  int64_t first(int64_t s) const { return offsets ? offsets[s] : s; }
  int64_t end(int64_t s) const { return offsets ? offsets[s + 1] : s + 1; }
  int64_t token(int64_t i) const { return perm ? perm[i] : anchors[i]; }
  bool exists(int64_t s) const { return anchors[s] >= 0 && end(s) > first(s); }

  static bool is_anchor(int64_t p, const std::vector<int64_t>& owner, const std::vector<int64_t>& stands) {
    return owner[p] == kText || stands[p] >= 0;
  }

  // Marks the members of segment s and the slot that it takes.
  void place(int64_t s, std::vector<int64_t>& owner, std::vector<int64_t>& stands) const {
    if (offsets)
      for (int64_t k = s; k <= s + 1; ++k)
        TORCH_CHECK_VALUE(offsets[k] >= (k ? offsets[k - 1] : 0) && offsets[k] <= num_tokens, kOp,
                          ": offsets: expected ascending values in [0, ", num_tokens, "], got ", offsets[k],
                          " at ", k);
    TORCH_CHECK_VALUE(anchors[s] >= -1 && anchors[s] < num_tokens, kOp, ": anchors: expected tokens in [0, ",
                      num_tokens, ") or -1, got ", anchors[s]);
    if (!exists(s)) return;
    for (int64_t i = first(s); i < end(s); ++i) {
      const int64_t v = token(i);
      TORCH_CHECK_VALUE(v >= 0 && v < num_tokens && slots[v] >= 0 && owner[slots[v]] == kNone, kOp, ": ",
                        perm ? "perm" : "anchors", ": expected tokens that have a slot, each once, got ", v);
      owner[slots[v]] = s;
    }
    const int64_t p = slots[anchors[s]];
    TORCH_CHECK_VALUE(p >= 0 && owner[p] == s, kOp, ": anchors: expected a member of segment ", s, ", got ",
                      anchors[s]);
    stands[p] = s;
  }

  int64_t emit(int64_t s, int64_t total) const {
    for (int64_t i = first(s); i < end(s); ++i) out_perm[total + i - first(s)] = slots[token(i)];
    return end(s) - first(s);
  }
};

template <class T>
const T* row(const std::optional<Tensor>& t, int64_t b) {
  return t ? data<T>(*t) + b * t->size(-1) : nullptr;
}

using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Outputs expand_plan(const Tensor& slots, const Tensor& anchors, const std::optional<Tensor>& perm,
                    const std::optional<Tensor>& offsets, const std::optional<Tensor>& merged,
                    const std::optional<Tensor>& valid, int64_t num_slots, int64_t out_len) {
  check(slots, anchors, perm, offsets, merged, valid, num_slots, out_len);
  const auto contiguous = [](const std::optional<Tensor>& t) {
    return t ? std::optional<Tensor>(t->contiguous()) : std::nullopt;
  };
  const std::optional<Tensor> in[] = {contiguous(slots),   contiguous(anchors), contiguous(perm),
                                      contiguous(offsets), contiguous(merged),  contiguous(valid)};
  const auto make = [&](int64_t length, at::ScalarType dtype) {
    return empty(lead_and(slots, 1, {length}), dtype);
  };
  const int64_t segments = anchors.size(-1);
  const Tensor out[] = {make(num_slots, at::kLong),        make(one_more(out_len), at::kLong),
                        make(out_len, at::kLong),          make(out_len, at::kBool),
                        make(num_slots, at::kLong),        make(segments, at::kLong),
                        make(one_more(out_len), at::kLong)};
  if (batch_of(slots, 2) == 0) return {out[0], out[1], out[2], out[3], out[4], out[5], out[6]};
  const auto row_of = [&](int64_t k, int64_t b) {
    return mutable_data<int64_t>(out[k]) + b * out[k].size(-1);
  };
  at::parallel_for(0, batch_of(slots, 2), grain(8 * num_slots), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b)
      Sample{.num_tokens = slots.size(-1),
             .num_segments = segments,
             .num_slots = num_slots,
             .out_len = out_len,
             .slots = row<int64_t>(in[0], b),
             .anchors = row<int64_t>(in[1], b),
             .perm = row<int64_t>(in[2], b),
             .offsets = row<int64_t>(in[3], b),
             .merged = row<bool>(in[4], b),
             .valid = row<bool>(in[5], b),
             .out_perm = row_of(0, b),
             .out_offsets = row_of(1, b),
             .out_anchors = row_of(2, b),
             .out_merged = mutable_data<bool>(out[3]) + b * out_len,
             .column = row_of(4, b),
             .out_slots = row_of(5, b),
             .removed = row_of(6, b)}
          .expand();
  });
  return {out[0], out[1], out[2], out[3], out[4], out[5], out[6]};
}

}  // namespace

TORCH_LIBRARY_IMPL(vitcop, CPU, m) {
  m.impl("expand_plan", expand_plan);
}

}  // namespace vitcop
