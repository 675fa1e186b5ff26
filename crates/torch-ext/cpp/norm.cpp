// Fused layer norm and GELU. On CPUs it works on chunks of rows, so that the norm's output stays in
// the cache; it is not saved but recomputed in the backward pass.
#include "shim.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/gelu_backward.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/native_layer_norm.h>
#include <ATen/ops/native_layer_norm_backward.h>
#include <ATen/record_function.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/custom_function.h>

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Values per chunk: with the intermediates, about the size of a core's L2 cache.
constexpr int64_t CHUNK_VALUES = 1 << 16;

// Splits the rows of a matrix into chunks.
struct Chunks {
  int64_t rows, chunk_rows, count;

  explicit Chunks(const at::Tensor &x)
      : rows(x.size(0)), chunk_rows(std::max<int64_t>(1, CHUNK_VALUES / x.size(1))),
        count((rows + chunk_rows - 1) / chunk_rows) {}

  // Calls `body(chunk, first row, rows)` on all threads.
  template <typename F> void run(F &&body) const {
    at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      at::AutoDispatchBelowADInplaceOrView no_gradients;
      for (int64_t chunk = begin; chunk < end; ++chunk)
        body(chunk, chunk * chunk_rows, std::min(chunk_rows, rows - chunk * chunk_rows));
    });
  }
};

// An empty tensor stands for an absent parameter.
std::optional<at::Tensor> as_optional(const at::Tensor &x) { return x.numel() ? std::optional(x) : std::nullopt; }

// gelu(layer_norm(x)) in the kind of x, computed in f32. Saves only x.
struct NormGelu : torch::autograd::Function<NormGelu> {
  static at::Tensor forward(AutogradContext *ctx, const at::Tensor &input, const at::Tensor &weight,
                            const at::Tensor &bias, double eps) {
    RECORD_FUNCTION("data2vec::norm_gelu", {});
    auto x = input.contiguous();
    ctx->save_for_backward({x, weight, bias});
    ctx->saved_data["eps"] = eps;
    auto out = at::empty_like(x);
    auto from = rows(x), to = out.view(from.sizes());
    Chunks(from).run([&](int64_t, int64_t row, int64_t count) {
      auto part = from.narrow(0, row, count).to(at::kFloat);
      auto norm = std::get<0>(at::native_layer_norm(part, {part.size(1)}, as_optional(weight), as_optional(bias), eps));
      to.narrow(0, row, count).copy_(at::gelu_(norm));
    });
    return out;
  }

  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    RECORD_FUNCTION("data2vec::norm_gelu_backward", {});
    auto saved = ctx->get_saved_variables();
    auto from = rows(saved[0]), grad = rows(grads[0]);
    auto weight = as_optional(saved[1]), bias = as_optional(saved[2]);
    double eps = ctx->saved_data["eps"].toDouble();
    auto dx = at::empty_like(saved[0]), to = dx.view(from.sizes());
    Chunks chunks(from);
    bool affine = weight.has_value();
    // One sum per chunk, so that the result does not depend on the number of threads.
    auto dweights = at::empty({affine ? chunks.count : 0, from.size(1)}), dbiases = at::empty_like(dweights);
    chunks.run([&](int64_t chunk, int64_t row, int64_t count) {
      auto part = from.narrow(0, row, count).to(at::kFloat);
      auto [norm, mean, rstd] = at::native_layer_norm(part, {part.size(1)}, weight, bias, eps);
      auto dnorm = at::gelu_backward(grad.narrow(0, row, count).to(at::kFloat), norm);
      auto [d, dweight, dbias] = at::native_layer_norm_backward(
          dnorm, part, {part.size(1)}, mean, rstd, weight, bias, {true, affine, affine});
      to.narrow(0, row, count).copy_(d);
      if (affine) {
        dweights.select(0, chunk).copy_(dweight);
        dbiases.select(0, chunk).copy_(dbias);
      }
    });
    if (!affine) return {dx, {}, {}, {}};
    return {dx, dweights.sum(0), dbiases.sum(0), {}};
  }
};

}  // namespace

extern "C" {

// `weight` and `bias` may both be null.
int d2v_norm_gelu(TensorPtr x, TensorPtr weight, TensorPtr bias, double eps, TensorPtr out, char **error) {
  return guarded(error, [&] {
    TORCH_CHECK(x->dim() >= 1 && (!weight || weight->numel() == x->size(-1)),
                "norm_gelu: the weight must have one value for each channel of ", x->sizes());
    bool fused = x->is_cpu() && x->numel() > 0 && (x->scalar_type() == at::kFloat || x->scalar_type() == at::kBFloat16);
    auto none = at::empty({0});
    auto w = weight ? *weight : none, b = bias ? *bias : none;
    *out = fused ? NormGelu::apply(*x, w, b, eps)
                 : at::gelu(at::layer_norm(*x, {x->size(-1)}, as_optional(w), as_optional(b), eps));
  });
}

}
