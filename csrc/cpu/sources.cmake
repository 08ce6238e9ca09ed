# vic_cluster's translation units; those with an ISA suffix are compiled for that instruction set.
set(VITCOP_VIC_SOURCES
  csrc/cpu/isa.cpp
  csrc/cpu/vic_cluster.cpp
  csrc/cpu/vic/anchors.cpp
  csrc/cpu/vic/resolve.cpp
  csrc/cpu/vic/sample.cpp
  csrc/cpu/vic/kernels_portable.cpp
  csrc/cpu/vic/kernels_avx2.cpp
  csrc/cpu/vic/kernels_avx512.cpp
  csrc/cpu/vic/kernels_avx512_bf16.cpp)
