// Activation checkpointing: what a part of a network computes on the way is forgotten, and computed
// again, with the same random numbers, when the backward pass needs it.
#include "shim.h"

#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

namespace {

// Calls back: inputs in, an owned output out. Returns 0, or 1 with a message.
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

// What the forward pass ran under.
struct Surroundings : torch::CustomClassHolder {
  at::Device device;
  at::Tensor cpu, other;  // states of random generators
  bool autocast;
  at::ScalarType kind;

  explicit Surroundings(at::Device device)
      : device(device), autocast(at::autocast::is_autocast_enabled(device.type())),
        kind(at::autocast::get_autocast_dtype(device.type())) {
    cpu = state_of(at::kCPU);
    if (!device.is_cpu()) other = state_of(device);
  }
  static at::Tensor state_of(at::Device device) {
    auto generator = at::globalContext().defaultGenerator(device);
    std::lock_guard<std::mutex> lock(generator.mutex());
    return generator.get_state();
  }
  static void set_state(at::Device device, const at::Tensor &state) {
    auto generator = at::globalContext().defaultGenerator(device);
    std::lock_guard<std::mutex> lock(generator.mutex());
    generator.set_state(state);
  }
  void enter() const {
    set_state(at::kCPU, cpu);
    if (!device.is_cpu()) set_state(device, other);
    at::autocast::set_autocast_dtype(device.type(), kind);
    at::autocast::set_autocast_enabled(device.type(), autocast);
  }
};

// Puts the surroundings of a forward pass in place, and its own back at the end.
struct As {
  Surroundings mine;
  explicit As(const Surroundings &wanted) : mine(wanted.device) {
    wanted.enter();
    at::autocast::increment_nesting();
  }
  ~As() {
    if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
    mine.enter();
  }
};

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Checkpoint : torch::autograd::Function<Checkpoint> {
  // `wanted` asks for gradients even if neither input does: the body's own variables may.
  static at::Tensor forward(AutogradContext *ctx, const at::Tensor &x, const at::Tensor &bias,
                            const at::Tensor & /*wanted*/, c10::intrusive_ptr<Body> body) {
    ctx->save_for_backward({x, bias});
    ctx->saved_data["body"] = c10::IValue::make_capsule(body);
    ctx->saved_data["as"] = c10::IValue::make_capsule(c10::make_intrusive<Surroundings>(x.device()));
    return (*body)(x, bias);
  }

  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    auto saved = ctx->get_saved_variables();
    auto body = c10::static_intrusive_pointer_cast<Body>(ctx->saved_data["body"].toCapsule());
    auto as = c10::static_intrusive_pointer_cast<Surroundings>(ctx->saved_data["as"].toCapsule());
    variable_list inputs;
    at::Tensor output;
    for (size_t i = 0; i < 2; ++i)
      inputs.push_back(saved[i].detach().set_requires_grad(ctx->needs_input_grad(i)));
    {
      As forward_pass(*as);
      torch::autograd::AutoGradMode with_grad(true);
      at::RecordFunctionGuard uncounted(/*is_enabled=*/false);  // that it is done twice is our choice
      output = (*body)(inputs[0], inputs[1]);
    }
    if (output.requires_grad()) torch::autograd::backward({output}, {grads[0]});
    return {inputs[0].grad(), inputs[1].grad(), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

extern "C" {

// `bias` may be null. Takes over `state`, which `drop` frees.
int d2v_checkpoint(TensorPtr x, TensorPtr bias, void *state, Run run, Drop drop, TensorPtr out, char **error) {
  return guarded(error, [&] {
    auto body = c10::make_intrusive<Body>(state, run, drop);
    auto wanted = at::empty({0}).set_requires_grad(true);
    *out = Checkpoint::apply(*x, bias ? *bias : at::empty({0}), wanted, body);
  });
}

}
