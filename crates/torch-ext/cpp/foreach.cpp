// Fused operations over lists of parameters: one call, and few kernel launches on CUDA.
#include "shim.h"

#include <ATen/ops/_foreach_lerp.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/stack.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/autograd/grad_mode.h>

extern "C" {

int d2v_ema_update(TensorPtr *averaged, TensorPtr *source, size_t count, double decay, char **error) {
  return guarded(error, [&] {
    torch::autograd::AutoGradMode no_grad(false);
    at::_foreach_lerp_(list(averaged, count), list(source, count), 1.0 - decay);
  });
}

// Makes gradients undefined and frees them: the next backward pass assigns instead of adding to
// zeros.
int d2v_zero_grad(TensorPtr *params, size_t count, char **error) {
  return guarded(error, [&] {
    for (auto &param : list(params, count)) param.mutable_grad().reset();
  });
}

// L2 norm over all values of all tensors; stays on the device.
int d2v_total_norm(TensorPtr *tensors, size_t count, TensorPtr out, char **error) {
  return guarded(error, [&] {
    torch::autograd::AutoGradMode no_grad(false);
    auto norms = at::_foreach_norm(list(tensors, count), 2);
    *out = at::linalg_vector_norm(at::stack(norms), 2);
  });
}

int d2v_fused_adamw(TensorPtr *params, TensorPtr *grads, TensorPtr *exp_avgs, TensorPtr *exp_avg_sqs,
                    TensorPtr *steps, size_t count, double lr, double beta1, double beta2,
                    double weight_decay, double eps, TensorPtr divisor, char **error) {
  return guarded(error, [&] {
    torch::autograd::AutoGradMode no_grad(false);
    at::_fused_adamw_(list(params, count), list(grads, count), list(exp_avgs, count),
                      list(exp_avg_sqs, count), {}, list(steps, count), lr, beta1, beta2,
                      weight_decay, eps, /*amsgrad=*/false, /*maximize=*/false, /*grad_scale=*/*divisor);
  });
}

}
