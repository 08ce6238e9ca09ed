#define VITCOP_VIC_LEVEL 2
#define VITCOP_VIC_NS avx512
#include "cpu/vic/table.h"

namespace vitcop::vic {
extern const Kernels kAvx512 = avx512::kTable;
}
