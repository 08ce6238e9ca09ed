// Autograd of the ops that rank or choose tokens: asking for a gradient is an error, and a call that asks for
// none does not pass through Python, as it would by the registration in _library.py that serves every other
// device.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <torch/csrc/autograd/functions/basic_ops.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include <algorithm>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>

namespace vitcop {
namespace {

using torch::autograd::Error;
using NodePtr =
    decltype(torch::autograd::Edge::function);  // shared_ptr up to torch 2.12, intrusive_ptr since

template <class Ptr>
Ptr make_error(std::string message, torch::autograd::edge_list edges) {
  if constexpr (std::is_same_v<Ptr, std::shared_ptr<torch::autograd::Node>>)
    return std::make_shared<Error>(std::move(message), std::move(edges));
  else
    return c10::make_intrusive<Error>(std::move(message), std::move(edges));
}

// Calls f with each tensor of an argument or output.
template <class F>
void for_each_tensor(const c10::IValue& value, F&& f) {
  if (value.isTensor() && value.toTensor().defined()) f(value.toTensor());
  if (value.isTensorList())
    for (const at::Tensor& t : value.toTensorVector()) f(t);
}

bool wants_gradient(const c10::IValue& value) {
  bool wants = false;
  for_each_tensor(value, [&](const at::Tensor& t) { wants |= t.requires_grad(); });
  return wants;
}

void refuse_gradient(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  NodePtr refusal;
  const auto arguments = torch::jit::last(*stack, op.schema().arguments().size());
  if (at::GradMode::is_enabled() && std::any_of(arguments.begin(), arguments.end(), wants_gradient)) {
    torch::autograd::variable_list inputs;
    for (const c10::IValue& value : arguments)
      for_each_tensor(value, [&](const at::Tensor& t) {
        if (t.requires_grad()) inputs.push_back(t);
      });
    const std::string name = op.schema().name().substr(op.schema().name().rfind(':') + 1);
    refusal = make_error<NodePtr>(name +
                                      ": has no gradient (it ranks or chooses tokens); "
                                      "detach its inputs, or take gradients through segment_mean",
                                  torch::autograd::collect_next_edges(inputs));
  }
  {
    at::AutoDispatchBelowAutograd guard;
    op.redispatchBoxed(keys & c10::after_autograd_keyset, stack);
  }
  if (refusal)
    for (const c10::IValue& output : torch::jit::last(*stack, op.schema().returns().size()))
      for_each_tensor(output, [&](const at::Tensor& t) {
        if (t.is_floating_point()) torch::autograd::set_history(t, refusal);
      });
}

}  // namespace

TORCH_LIBRARY_IMPL(vitcop, AutogradCPU, m) {
  for (const char* op : {"key_norms", "key_proj", "key_proj_norms", "attention_saliency", "vic_cluster",
                         "vic_cluster_varlen", "prune_sequence"})
    m.impl(op, torch::CppFunction::makeFromBoxedFunction<&refuse_gradient>());
}

}  // namespace vitcop
