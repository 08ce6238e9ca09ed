// Shared by the CPU kernels: argument checks in the words of vitcop_kernels/_checks.py, dtype dispatch, and
// the way to the reference for float64.
#pragma once

#include "cpu/elements.h"

#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>

#include <array>
#include <cmath>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

namespace vitcop {

using at::Tensor;

// --- checks: "<op>: <argument>: expected <what>, got <what came>"
// -----------------------------------------------

inline std::string name_of(at::ScalarType dtype) {
  return std::string(c10::getDtypeNames(dtype).first);
}

inline std::string shape_of(at::IntArrayRef sizes) {
  std::string text = "[";
  for (size_t i = 0; i < sizes.size(); ++i) text += (i ? ", " : "") + std::to_string(sizes[i]);
  return text + "]";
}

inline bool is_floating(at::ScalarType t) {
  return t == at::kFloat || t == at::kBFloat16 || t == at::kHalf || t == at::kDouble;
}

inline void check_floating(const char* op, const char* argument, const Tensor& t) {
  TORCH_CHECK_TYPE(is_floating(t.scalar_type()), op, ": ", argument,
                   ": expected float32, bfloat16, float16 or float64, got ", name_of(t.scalar_type()));
}

inline void check_same_dtype(const char* op, const char* argument, const Tensor& t, const char* other,
                             const Tensor& model) {
  TORCH_CHECK_TYPE(t.scalar_type() == model.scalar_type(), op, ": ", argument, ": expected the dtype of ",
                   other, " (", name_of(model.scalar_type()), "), got ", name_of(t.scalar_type()));
}

inline void check_dtype(const char* op, const char* argument, const Tensor& t, at::ScalarType dtype) {
  TORCH_CHECK_TYPE(t.scalar_type() == dtype, op, ": ", argument, ": expected ", name_of(dtype), ", got ",
                   name_of(t.scalar_type()));
}

inline void check_same_device(const char* op, const char* argument, const Tensor& t, const char* other,
                              const Tensor& model) {
  TORCH_CHECK_VALUE(t.device() == model.device(), op, ": ", argument, ": expected the device of ", other,
                    " (", model.device(), "), got ", t.device());
}

inline void check_dims(const char* op, const char* argument, const Tensor& t, int64_t low, int64_t high,
                       const char* layout) {
  TORCH_CHECK_VALUE(t.dim() >= low && t.dim() <= high, op, ": ", argument, ": expected ", layout, ", got ",
                    shape_of(t.sizes()));
}

inline void check_shape(const char* op, const char* argument, const Tensor& t, at::IntArrayRef expected) {
  TORCH_CHECK_VALUE(t.sizes() == expected, op, ": ", argument, ": expected ", shape_of(expected), ", got ",
                    shape_of(t.sizes()));
}

inline void check_at_least(const char* op, const char* argument, int64_t value, int64_t low) {
  TORCH_CHECK_VALUE(value >= low, op, ": ", argument, ": expected at least ", low, ", got ", value);
}

inline void check_in_range(const char* op, const char* argument, int64_t value, int64_t low, int64_t high) {
  TORCH_CHECK_VALUE(value >= low && value <= high, op, ": ", argument, ": expected an integer in [", low,
                    ", ", high, "], got ", value);
}

inline void check_one_of(const char* op, const char* argument, std::string_view value,
                         std::initializer_list<const char*> allowed) {
  std::string names;
  for (const char* a : allowed) {
    if (value == a) return;
    names += (names.empty() ? "\"" : " or \"") + std::string(a) + "\"";
  }
  TORCH_CHECK_VALUE(false, op, ": ", argument, ": expected ", names, ", got \"", value, "\"");
}

// The sizes of t without its last `drop`, then `tail`.
inline std::vector<int64_t> lead_and(const Tensor& t, int64_t drop, std::initializer_list<int64_t> tail) {
  std::vector<int64_t> sizes(t.sizes().begin(), t.sizes().end() - drop);
  sizes.insert(sizes.end(), tail);
  return sizes;
}

// --- float64 goes to vitcop_reference::<op>
// ----------------------------------------------------------------------

// The arguments in the order of the schema; returns the op's outputs.
template <class... Args>
torch::jit::Stack call_reference(const char* op, Args&&... args) {
  const std::string name = std::string("vitcop_reference::") + op;
  torch::jit::Stack stack;
  (stack.emplace_back(std::forward<Args>(args)), ...);
  c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), "").callBoxed(stack);
  return stack;
}

// --- dtypes and layouts
// ------------------------------------------------------------------------------------------

// Calls f(T{}) with the element type of a float32, bfloat16 or float16 tensor.
template <class F>
void dispatch_element(at::ScalarType dtype, F&& f) {
  switch (dtype) {
    case at::kFloat:
      return f(float{});
    case at::kBFloat16:
      return f(bf16{});
    case at::kHalf:
      return f(f16{});
    default:
      TORCH_INTERNAL_ASSERT(false, "unreachable dtype ", dtype);
  }
}

// Where rows of no width lie: a tensor without elements has no memory, and nothing may be added to a null
// pointer.
alignas(8) inline char nowhere[8];

template <class T>
const T* data(const Tensor& t) {
  return t.numel() ? static_cast<const T*>(t.const_data_ptr()) : reinterpret_cast<const T*>(nowhere);
}

template <class T>
T* mutable_data(const Tensor& t) {
  return t.numel() ? static_cast<T*>(t.mutable_data_ptr()) : reinterpret_cast<T*>(nowhere);
}

inline Tensor empty(at::IntArrayRef sizes, at::ScalarType dtype) {
  return Tensor(at::detail::empty_cpu(sizes, dtype));
}

// t itself if its last dimension is contiguous, else a copy.
inline Tensor with_contiguous_rows(const Tensor& t) {
  return t.stride(-1) == 1 || t.size(-1) <= 1 ? t : t.contiguous();
}

inline int64_t batch_of(const Tensor& t, int64_t dims_with_batch) {
  return t.dim() == dims_with_batch ? t.size(0) : 1;
}
inline int64_t batch_stride(const Tensor& t, int64_t dims_with_batch) {
  return t.dim() == dims_with_batch ? t.stride(0) : 0;
}

// n + 1. Of INT64_MAX INT64_MIN, which no tensor has for a size.
inline int64_t one_more(int64_t n) {
  return static_cast<int64_t>(static_cast<uint64_t>(n) + 1);
}

// How many iterations of about `cost` element operations each are worth a thread.
inline int64_t grain(int64_t cost) {
  return std::max<int64_t>(1, 32768 / std::max<int64_t>(1, cost));
}

inline double to_double(float x) {
  return x;
}
inline double to_double(bf16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float f;
  std::memcpy(&f, &bits, sizeof(f));
  return f;
}
inline double to_double(f16 x) {
  return static_cast<float>(c10::Half(x.bits, c10::Half::from_bits()));
}

template <class T>
T from_double(double x) {
  const float f = static_cast<float>(x);
  if constexpr (std::is_same_v<T, bf16>) return bf16{c10::BFloat16(f).x};
  if constexpr (std::is_same_v<T, f16>) return f16{c10::Half(f).x};
  if constexpr (std::is_same_v<T, float>) return f;
}

// A float32 sum of squares that neither overflowed nor lost much to underflow.
inline bool trustworthy(float sum_of_squares) {
  return sum_of_squares >= 1e-30f && sum_of_squares <= 3e38f;
}

}  // namespace vitcop
