#include "cpu/isa.h"

#include <cstdlib>
#include <string_view>

namespace vitcop {
namespace {

constexpr Isa kAll[] = {Isa::Portable, Isa::AVX2, Isa::AVX512, Isa::AVX512_BF16};

Isa detect() {
  Isa isa = Isa::Portable;
#if defined(__x86_64__)
  __builtin_cpu_init();
#ifdef VITCOP_HAVE_AVX2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    isa = Isa::AVX2;
#ifdef VITCOP_HAVE_AVX512
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      isa = Isa::AVX512;
#ifdef VITCOP_HAVE_AVX512_BF16
      if (__builtin_cpu_supports("avx512bf16")) isa = Isa::AVX512_BF16;
#endif
    }
#endif
  }
#endif
#endif
  return isa;
}

// The level that VITCOP_CPU_ISA names, or null.
const Isa* requested() {
  static const Isa* const wanted = []() -> const Isa* {
    const char* name = std::getenv("VITCOP_CPU_ISA");
    if (!name) return nullptr;
    for (const Isa& isa : kAll)
      if (std::string_view(name) == isa_name(isa)) return &isa;
    return nullptr;
  }();
  return wanted;
}

}  // namespace

Isa cpu_isa() {
  static const Isa isa = [] {
    const Isa found = detect();
    return requested() && *requested() < found ? *requested() : found;
  }();
  return isa;
}

bool bf16_dot_pays() {
  static const bool pays = [] {
    if (cpu_isa() != Isa::AVX512_BF16) return false;
    if (requested()) return true;
#if defined(__x86_64__)
    return bool(__builtin_cpu_is("amd"));
#else
    return false;
#endif
  }();
  return pays;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::AVX2:
      return "avx2";
    case Isa::AVX512:
      return "avx512";
    case Isa::AVX512_BF16:
      return "avx512_bf16";
    default:
      return "portable";
  }
}

}  // namespace vitcop
