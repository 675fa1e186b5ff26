// Activation checkpointing: intermediate activations are not saved but recomputed, with the same
// random numbers, in the backward pass.
#include "shim.h"

#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

namespace {

// Callback from inputs to an owned output. Returns 0, or 1 with a message.
using Run = int (*)(void *state, TensorPtr x, TensorPtr bias, TensorPtr *out, char **error);
using Drop = void (*)(void *state);

struct Body : torch::CustomClassHolder {
  void *state;
  Run run;
  Drop drop;
  Body(void *state, Run run, Drop drop) : state(state), run(run), drop(drop) {}
  ~Body() override { drop(state); }

  at::Tensor operator()(at::Tensor x, at::Tensor bias) const {
    TensorPtr out = nullptr;
    char *error = nullptr;
    int failed = run(state, &x, bias.numel() == 0 ? nullptr : &bias, &out, &error);
    std::string message = error ? error : "";
    free(error);
    TORCH_CHECK(!failed, message);
    at::Tensor output = std::move(*out);
    delete out;
    return output;
  }
};

// Random state and autocast setting of the forward pass.
struct Environment : torch::CustomClassHolder {
  at::Device device;
  at::Tensor cpu_state, device_state;  // of the random generators
  bool autocast;
  at::ScalarType kind;

  explicit Environment(at::Device device)
      : device(device), autocast(at::autocast::is_autocast_enabled(device.type())),
        kind(at::autocast::get_autocast_dtype(device.type())) {
    cpu_state = get_state(at::kCPU);
    if (!device.is_cpu()) device_state = get_state(device);
  }
  static at::Tensor get_state(at::Device device) {
    auto generator = at::globalContext().defaultGenerator(device);
    std::lock_guard<std::mutex> lock(generator.mutex());
    return generator.get_state();
  }
  static void set_state(at::Device device, const at::Tensor &state) {
    auto generator = at::globalContext().defaultGenerator(device);
    std::lock_guard<std::mutex> lock(generator.mutex());
    generator.set_state(state);
  }
  void restore() const {
    set_state(at::kCPU, cpu_state);
    if (!device.is_cpu()) set_state(device, device_state);
    at::autocast::set_autocast_dtype(device.type(), kind);
    at::autocast::set_autocast_enabled(device.type(), autocast);
  }
};

// Restores the environment of a forward pass, and the current one on destruction.
struct EnvironmentGuard {
  Environment previous;
  explicit EnvironmentGuard(const Environment &environment) : previous(environment.device) {
    environment.restore();
    at::autocast::increment_nesting();
  }
  ~EnvironmentGuard() {
    if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
    previous.restore();
  }
};

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Checkpoint : torch::autograd::Function<Checkpoint> {
  // `requires_grad` makes the output require gradients even if neither input does: variables
  // captured by the body may.
  static at::Tensor forward(AutogradContext *ctx, const at::Tensor &x, const at::Tensor &bias,
                            const at::Tensor & /*requires_grad*/, c10::intrusive_ptr<Body> body) {
    ctx->save_for_backward({x, bias});
    ctx->saved_data["body"] = c10::IValue::make_capsule(body);
    ctx->saved_data["environment"] = c10::IValue::make_capsule(c10::make_intrusive<Environment>(x.device()));
    return (*body)(x, bias);
  }

  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    auto saved = ctx->get_saved_variables();
    auto body = c10::static_intrusive_pointer_cast<Body>(ctx->saved_data["body"].toCapsule());
    auto environment = c10::static_intrusive_pointer_cast<Environment>(ctx->saved_data["environment"].toCapsule());
    variable_list inputs;
    at::Tensor output;
    for (size_t i = 0; i < 2; ++i)
      inputs.push_back(saved[i].detach().set_requires_grad(ctx->needs_input_grad(i)));
    {
      EnvironmentGuard guard(*environment);
      torch::autograd::AutoGradMode with_grad(true);
      at::RecordFunctionGuard no_profile(/*is_enabled=*/false);  // recomputation is not the model's flop
      output = (*body)(inputs[0], inputs[1]);
    }
    if (output.requires_grad()) torch::autograd::backward({output}, {grads[0]});
    return {inputs[0].grad(), inputs[1].grad(), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

extern "C" {

// `bias` may be null. Takes ownership of `state`, which `drop` frees.
int d2v_checkpoint(TensorPtr x, TensorPtr bias, void *state, Run run, Drop drop, TensorPtr out, char **error) {
  return guarded(error, [&] {
    auto body = c10::make_intrusive<Body>(state, run, drop);
    auto requires_grad = at::empty({0}).set_requires_grad(true);
    *out = Checkpoint::apply(*x, bias ? *bias : at::empty({0}), requires_grad, body);
  });
}

}
