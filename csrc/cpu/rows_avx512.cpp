#include "cpu/rows_impl.h"

namespace vitcop {
extern const RowsTable rows_avx512;
const RowsTable rows_avx512 = kRowsTable;
}  // namespace vitcop
