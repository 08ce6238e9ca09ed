#pragma once

namespace vitcop {

// Instruction sets with kernels of their own, each a superset of the one before.
enum class Isa { Portable, AVX2, AVX512, AVX512_BF16 };

// What this processor runs and this build contains, capped by VITCOP_CPU_ISA = portable | avx2 | avx512 |
// avx512_bf16 (read once; any other value is ignored).
Isa cpu_isa();

// Whether bfloat16 dot products outrun widening to float32: two VDPBF16PS per cycle on AMD, while Intel's
// cores retire them at half the multiply-add rate of float32 FMA or less. VITCOP_CPU_ISA=avx512_bf16 says yes
// everywhere.
bool bf16_dot_pays();

const char* isa_name(Isa isa);

}  // namespace vitcop
