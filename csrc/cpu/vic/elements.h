// Reading single elements of the three feature dtypes in portable code.
#pragma once

#include "cpu/vic/types.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <bit>

namespace vitcop::vic {

inline float to_float(float x) {
  return x;
}
inline float to_float(c10::BFloat16 x) {
  return std::bit_cast<float>(static_cast<uint32_t>(x.x) << 16);
}
inline float to_float(c10::Half x) {
  return x;
}
template <class T>
double to_double(T x) {
  return to_float(x);
}

// f(T{}) with the element type of the tokens.
template <class F>
void with_elements(Dtype dtype, const F& f) {
  switch (dtype) {
    case Dtype::F32:
      return f(float{});
    case Dtype::BF16:
      return f(c10::BFloat16{});
    case Dtype::F16:
      return f(c10::Half{});
  }
}

}  // namespace vitcop::vic
