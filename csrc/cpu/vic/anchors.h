#pragma once

#include "cpu/vic/types.h"

namespace vitcop::vic {

// A common offset per channel that every token can lose exactly, so that the Gram form does not cancel; null
// where there is no offset worth it. `anchor`, `work`: [d rounded up to 32] floats each. `halves`:
// differences must fit bfloat16.
const float* anchors(const Tokens& tokens, bool halves, bool parallel, float* anchor, float* work);

// Rows of unit length in float32 (zero rows stay zero, rows with NaN or inf stay bad), by a float64 norm.
void normalize(const Tokens& tokens, bool parallel, float* unit);

}  // namespace vitcop::vic
