#define VITCOP_VIC_LEVEL 0
#define VITCOP_VIC_NS portable
#include "cpu/vic/table.h"

namespace vitcop::vic {
extern const Kernels kPortable = portable::kTable;
}
