#include "cpu/rows.h"

#include "cpu/isa.h"

namespace vitcop {

extern const RowsTable rows_portable;
extern const RowsTable rows_avx2;
extern const RowsTable rows_avx512;

const RowsTable& rows_table() {
#if defined(VITCOP_HAVE_AVX512)
  if (cpu_isa() >= Isa::AVX512) return rows_avx512;
#endif
#if defined(VITCOP_HAVE_AVX2)
  if (cpu_isa() >= Isa::AVX2) return rows_avx2;
#endif
  return rows_portable;
}

}  // namespace vitcop
