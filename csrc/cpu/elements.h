// The element types of the CPU kernels as plain bits: translation units compiled for one instruction set must
// not instantiate c10's inline functions, which the linker would then share with machines that lack it.
#pragma once

#include <cstdint>

namespace vitcop {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

}  // namespace vitcop
