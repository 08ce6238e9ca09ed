#define VITCOP_VIC_LEVEL 3
#define VITCOP_VIC_NS avx512_bf16
#include "cpu/vic/table.h"

namespace vitcop::vic {
extern const Kernels kAvx512Bf16 = avx512_bf16::kTable;
}
