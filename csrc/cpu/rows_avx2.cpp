#include "cpu/rows_impl.h"

namespace vitcop {
extern const RowsTable rows_avx2;
const RowsTable rows_avx2 = kRowsTable;
}  // namespace vitcop
