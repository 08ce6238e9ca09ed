// From the plan of a sample's visual tokens to the plan of its whole sequence: what expand_plan and
// prune_sequence share. O(n + V).
#pragma once

#include "cpu/common.h"

#include <algorithm>

namespace vitcop {

// One sample's part of the inputs (null: not given) and of the outputs (null: not wanted); see
// ops/expand_plan/op.py.
struct Expansion {
  static constexpr int64_t kNone = -1;  // of no segment; of a slot: no visual token
  static constexpr int64_t kText = -2;  // a segment of its own
  static constexpr int64_t kPad = -3;   // padding

  const char* op;
  int64_t num_tokens, num_segments, num_slots, out_len;
  const int64_t* slots;
  const int64_t* anchors;
  const int64_t* perm = nullptr;
  const int64_t* offsets = nullptr;
  const bool* merged = nullptr;
  const bool* valid = nullptr;

  int64_t* out_perm = nullptr;  // with out_offsets
  int64_t* out_offsets = nullptr;
  int64_t* out_anchors;
  bool* out_merged = nullptr;
  int64_t* column = nullptr;
  int64_t* out_slots;
  int64_t* removed = nullptr;

  int64_t* owner;   // [num_slots] scratch: the segment of each slot, kText, kPad or kNone
  int64_t* stands;  // [num_slots] scratch: which segment a slot stands for

  // Of any plan, its values checked.
  void expand_checked() const {
    set_slots(true);
    std::fill_n(stands, num_slots, kNone);
    for (int64_t s = 0; s < num_segments; ++s) place(s);
    int64_t count = 0, tail = 0;
    for (int64_t p = 0; p < num_slots; ++p) {
      count += owner[p] == kText || stands[p] >= 0;
      tail += owner[p] >= 0 || owner[p] == kText;
    }
    write(count, tail);
  }

  // Of a plan that select_tokens or plan_tokens has made: the slots and out_len are checked. `owner` becomes
  // the segment that a slot stands for; slots of no segment are left out of out_perm.
  void expand_trusted() {
    int64_t count = set_slots(false);
    stands = owner;
    for (int64_t s = 0; s < num_segments; ++s)
      if (exists(s)) {
        owner[slots[anchors[s]]] = s;
        ++count;
      }
    write(count, num_slots);
  }

 private:
  int64_t first(int64_t s) const { return offsets ? offsets[s] : s; }
  int64_t end(int64_t s) const { return offsets ? offsets[s + 1] : s + 1; }
  int64_t token(int64_t i) const { return perm ? perm[i] : anchors[i]; }
  bool exists(int64_t s) const { return anchors[s] >= 0 && end(s) > first(s); }

  // Text, padding and visual tokens of no segment yet; returns how much text there is. `absent`: tokens may
  // have no slot.
  int64_t set_slots(bool absent) const {
    int64_t text = num_slots;
    if (valid) {
      for (int64_t p = 0; p < num_slots; ++p) {
        owner[p] = valid[p] ? kText : kPad;
        text -= !valid[p];
      }
    } else {
      std::fill_n(owner, num_slots, kText);
    }
    for (int64_t v = 0; v < num_tokens; ++v) {
      const int64_t p = slots[v];
      TORCH_CHECK_VALUE(p >= -absent && p < num_slots, op, ": slots: expected slots in [0, ", num_slots,
                        absent ? ") or -1, got " : "), got ", p);
      if (p < 0) continue;
      TORCH_CHECK_VALUE(owner[p] != kNone, op, ": slots: expected every slot once, got ", p, " twice");
      text -= owner[p] == kText;
      owner[p] = kNone;
    }
    return text;
  }

  // Marks the members of segment s and the slot that it takes.
  void place(int64_t s) const {
    if (offsets)
      for (int64_t k = s; k <= s + 1; ++k)
        TORCH_CHECK_VALUE(offsets[k] >= (k ? offsets[k - 1] : 0) && offsets[k] <= num_tokens, op,
                          ": offsets: expected ascending values in [0, ", num_tokens, "], got ", offsets[k],
                          " at ", k);
    TORCH_CHECK_VALUE(anchors[s] >= -1 && anchors[s] < num_tokens, op, ": anchors: expected tokens in [0, ",
                      num_tokens, ") or -1, got ", anchors[s]);
    if (!exists(s)) return;
    for (int64_t i = first(s); i < end(s); ++i) {
      const int64_t v = token(i);
      TORCH_CHECK_VALUE(v >= 0 && v < num_tokens && slots[v] >= 0 && owner[slots[v]] == kNone, op, ": ",
                        perm ? "perm" : "anchors", ": expected tokens that have a slot, each once, got ", v);
      owner[slots[v]] = s;
    }
    const int64_t p = slots[anchors[s]];
    TORCH_CHECK_VALUE(p >= 0 && owner[p] == s, op, ": anchors: expected a member of segment ", s, ", got ",
                      anchors[s]);
    stands[p] = s;
  }

  // `count` new slots; slots of no segment follow out_perm[:tail].
  void write(int64_t count, int64_t tail) const {
    TORCH_CHECK_VALUE(count <= out_len, op, ": out_len: expected at least the ", count,
                      " tokens that come out, got ", out_len);
    const int64_t lead = out_len - count;
    std::fill_n(out_anchors, lead, -1);
    if (out_offsets) std::fill_n(out_offsets, lead, 0);
    if (out_merged) std::fill_n(out_merged, lead, false);
    if (removed) std::fill_n(removed, lead, 0);
    std::fill_n(out_slots, num_segments, -1);
    int64_t at = lead, total = 0, gone = 0;
    for (int64_t p = 0; p < num_slots; ++p) {
      const int64_t s = stands[p];
      const bool stays = s >= 0 || owner[p] == kText;
      if (column) column[p] = stays ? at : out_len;
      if (stays) {
        out_anchors[at] = p;
        if (out_merged) out_merged[at] = s >= 0 && merged && merged[s];
        if (removed) removed[at] = gone;
        if (out_offsets) {
          out_offsets[at] = total;
          total += emit(p, s, total);
        }
        if (s >= 0) out_slots[s] = at;
        ++at;
      } else {
        gone += owner[p] != kPad;
      }
      if (tail < num_slots && (owner[p] == kNone || owner[p] == kPad)) out_perm[tail++] = p;
    }
    if (out_offsets) out_offsets[out_len] = total;
    if (removed) removed[out_len] = gone;
  }

  // The members of segment s, or the text at p.
  int64_t emit(int64_t p, int64_t s, int64_t total) const {
    if (s < 0) {
      out_perm[total] = p;
      return 1;
    }
    for (int64_t i = first(s); i < end(s); ++i) out_perm[total + i - first(s)] = slots[token(i)];
    return end(s) - first(s);
  }
};

}  // namespace vitcop
