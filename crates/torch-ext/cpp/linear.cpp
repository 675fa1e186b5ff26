// Linear layers whose input is cheap to recompute: the backward pass recomputes it instead of
// saving it.
#include "shim.h"

#include <ATen/autocast_mode.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/gelu_backward.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Kind of matrix products on x: autocast's if it is on, else that of x.
at::ScalarType product_kind(const at::Tensor &x) {
  auto device = x.device().type();
  return at::autocast::is_autocast_enabled(device) ? at::autocast::get_autocast_dtype(device) : x.scalar_type();
}

// linear(gelu(x)). Saves x, and the weight converted to the kind of x.
struct GeluLinear : torch::autograd::Function<GeluLinear> {
  static at::Tensor forward(AutogradContext *ctx, const at::Tensor &x, const at::Tensor &weight,
                            const at::Tensor &bias) {
    auto kind = x.scalar_type();
    auto w = weight.to(kind);
    ctx->save_for_backward({x, w});
    return at::linear(at::gelu(x), w, bias.to(kind));
  }
  // Computes gradients in the kind of x; the autograd engine casts each to its input's kind.
  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    auto saved = ctx->get_saved_variables();
    auto &x = saved[0], &w = saved[1];
    auto grad = rows(grads[0].to(x.scalar_type()));
    at::Tensor dx, dweight, dbias;
    if (ctx->needs_input_grad(1)) dweight = at::mm(grad.t(), rows(at::gelu(x)));
    if (ctx->needs_input_grad(2)) dbias = grad.sum(0);
    if (ctx->needs_input_grad(0)) dx = at::gelu_backward(at::mm(grad, w).view(x.sizes()), x);
    return {dx, dweight, dbias};
  }
};

// im2col: (B, L, C) to (B·L', k·C), the windows of a kernel of width k at its L' positions.
at::Tensor windows(const at::Tensor &x, int64_t kernel, int64_t stride) {
  int64_t b = x.size(0), c = x.size(2), positions = (x.size(1) - kernel) / stride + 1;
  auto source = x.contiguous();
  // Rows of the view overlap in memory; reshape copies them.
  auto view = source.as_strided({b, positions, kernel * c}, {source.stride(0), stride * c, 1});
  return view.reshape({b * positions, kernel * c});
}

// Convolution of (B, L, C_in) with (C_out, C_in, k) to (B, L', C_out) as one matrix product. Saves
// x.
struct Conv1dChannelsLast : torch::autograd::Function<Conv1dChannelsLast> {
  static at::Tensor forward(AutogradContext *ctx, const at::Tensor &input, const at::Tensor &weight,
                            int64_t stride) {
    auto kind = product_kind(input);
    auto x = input.to(kind).contiguous();
    ctx->save_for_backward({x, weight});
    ctx->saved_data["stride"] = stride;
    ctx->saved_data["kind"] = static_cast<int64_t>(input.scalar_type());
    int64_t kernel = weight.size(2);
    auto y = at::mm(windows(x, kernel, stride), flatten(weight, kind).t());
    return y.view({x.size(0), -1, weight.size(0)});
  }
  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    auto saved = ctx->get_saved_variables();
    auto &x = saved[0], &weight = saved[1];
    int64_t stride = ctx->saved_data["stride"].toInt(), kernel = weight.size(2), c = x.size(2);
    auto grad = rows(grads[0].to(x.scalar_type()));
    at::Tensor dx, dweight;
    if (ctx->needs_input_grad(1)) {
      auto product = at::mm(grad.t(), windows(x, kernel, stride));  // (C_out, k·C)
      dweight = product.view({-1, kernel, c}).transpose(1, 2).to(weight.scalar_type());
    }
    if (ctx->needs_input_grad(0)) {
      int64_t positions = grads[0].size(1);
      auto windows_grad = at::mm(grad, flatten(weight, x.scalar_type())).view({x.size(0), positions, kernel, c});
      dx = at::zeros(x.sizes(), x.options());
      for (int64_t j = 0; j < kernel; ++j)
        dx.slice(1, j, j + stride * (positions - 1) + 1, stride).add_(windows_grad.select(2, j));
      dx = dx.to(static_cast<at::ScalarType>(ctx->saved_data["kind"].toInt()));
    }
    return {dx, dweight, {}};
  }
  // (C_out, C, k) to (C_out, k·C), the layout of windows().
  static at::Tensor flatten(const at::Tensor &weight, at::ScalarType kind) {
    return weight.transpose(1, 2).reshape({weight.size(0), -1}).to(kind);
  }
};

}  // namespace

extern "C" {

int d2v_gelu_linear(TensorPtr x, TensorPtr weight, TensorPtr bias, TensorPtr out, char **error) {
  return guarded(error, [&] { *out = GeluLinear::apply(*x, *weight, *bias); });
}

int d2v_conv1d_channels_last(TensorPtr x, TensorPtr weight, int64_t stride, TensorPtr out, char **error) {
  return guarded(error, [&] {
    TORCH_CHECK(x->dim() == 3 && weight->dim() == 3 && x->size(2) == weight->size(1),
                "conv1d_channels_last: expected x (B, L, C_in) and weight (C_out, C_in, k), got ",
                x->sizes(), " and ", weight->sizes());
    TORCH_CHECK(x->size(1) >= weight->size(2) && stride >= 1,
                "conv1d_channels_last: x is shorter than the kernel, or stride is less than 1");
    *out = Conv1dChannelsLast::apply(*x, *weight, stride);
  });
}

}
