// The pybind11 module vitcop_kernels._C. Loading it registers the C++ kernels of csrc/cpu with torch's
// dispatcher.
#include "cpu/isa.h"

#include <pybind11/pybind11.h>

#include <string>

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::list isa_compiled;
  isa_compiled.append("portable");
#ifdef VITCOP_HAVE_AVX2
  isa_compiled.append("avx2");
#endif
#ifdef VITCOP_HAVE_AVX512
  isa_compiled.append("avx512");
#endif
#ifdef VITCOP_HAVE_AVX512_BF16
  isa_compiled.append("avx512_bf16");
#endif
  const std::string cuda = VITCOP_CUDA;
  py::dict info;
  info["version"] = VITCOP_VERSION;
  info["torch"] = VITCOP_TORCH;
  info["compiler"] = VITCOP_COMPILER;
  info["compiler_version"] = VITCOP_COMPILER_VERSION;
  info["flags"] = VITCOP_CXX_FLAGS;
  info["isa_compiled"] = isa_compiled;
  info["isa_active"] = vitcop::isa_name(vitcop::cpu_isa());
  info["cuda"] = cuda.empty() ? py::object(py::none()) : py::str(cuda);
#ifdef _OPENMP
  info["openmp"] = _OPENMP;
#else
  info["openmp"] = py::none();
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "C++ kernels of vitcop; importing this module registers them.";
  m.def("build_info", &build_info, "How this module was built and which instruction set it uses now.");
}
