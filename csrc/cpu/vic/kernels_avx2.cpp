#define VITCOP_VIC_LEVEL 1
#define VITCOP_VIC_NS avx2
#include "cpu/vic/table.h"

namespace vitcop::vic {
extern const Kernels kAvx2 = avx2::kTable;
}
