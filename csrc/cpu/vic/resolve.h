// From densities to ranks, from parents to centres and labels. n is the number of valid tokens; all indices
// count those.
#pragma once

#include "cpu/vic/scratch.h"

namespace vitcop::vic {

constexpr int32_t kNoParent = -1, kInvalidParent = -2;  // -2, released only: token 0, which is not valid

// order, place (by log density, then index) and key: j is denser than i where key[j] < key[i] + released.
void rank_tokens(Scratch& s, int64_t n, bool released);

// Numbers the best `count` tokens (n if there are fewer, the result) in `chosen`, `label` and `centers`,
// ascending; -1 after them in `centers`. `total` counts invalid tokens too.
int64_t choose_centers(Scratch& s, int64_t n, int64_t count, int64_t num_centers, int64_t total,
                       bool released, int64_t* centers);

// Labels at the ends of the parent chains.
void follow_parents(Scratch& s, int64_t n, bool released);

}  // namespace vitcop::vic
