// The table of one instruction set's kernels; the including file names the set.
#pragma once

#include "cpu/vic/density.h"
#include "cpu/vic/gram.h"
#include "cpu/vic/parents.h"

namespace vitcop::vic::VITCOP_VIC_NS {

inline bool pack_any(const Tokens& tokens, const float* anchor, int64_t panel, float* packed, float* norm) {
  switch (tokens.dtype) {
    case Dtype::BF16:
      return pack<BF16>(tokens, anchor, panel, packed, norm);
#if VITCOP_VIC_LEVEL < 3
    case Dtype::F16:
      return pack<F16>(tokens, anchor, panel, packed, norm);
    case Dtype::F32:
      return pack<F32>(tokens, anchor, panel, packed, norm);
#endif
    default:
      return true;
  }
}

inline bool tile_any(const Gram& g, int64_t ip0, int64_t ip1, int64_t jp0, int64_t jp1, float* out,
                     int64_t row0, int64_t ld, bool mirror) {
  switch (g.tokens.dtype) {
    case Dtype::BF16:
      return tile<BF16>(g, ip0, ip1, jp0, jp1, out, row0, ld, mirror);
#if VITCOP_VIC_LEVEL < 3
    case Dtype::F16:
      return tile<F16>(g, ip0, ip1, jp0, jp1, out, row0, ld, mirror);
    case Dtype::F32:
      return tile<F32>(g, ip0, ip1, jp0, jp1, out, row0, ld, mirror);
#endif
    default:
      return true;
  }
}

constexpr Kernels kTable{W, kTilePanels, VITCOP_VIC_LEVEL == 3, pack_any, tile_any, density, parent, widest};

}  // namespace vitcop::vic::VITCOP_VIC_NS
