#include "cpu/rows_impl.h"

namespace vitcop {
extern const RowsTable rows_portable;
const RowsTable rows_portable = kRowsTable;
}  // namespace vitcop
