// Dropout without a stored mask and Gaussian noise, multi-threaded. LibTorch's CPU kernels draw
// random numbers sequentially.
#include "kernels.h"
#include "shim.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <ATen/record_function.h>
#include <ATen/ops/add.h>
#include <ATen/ops/dropout.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/randn.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/custom_function.h>

namespace d2v {

uint64_t next_key() {
  auto generator = at::detail::getDefaultCPUGenerator();
  std::lock_guard<std::mutex> lock(generator.mutex());
  return at::check_generator<at::CPUGeneratorImpl>(generator)->random64();
}

namespace {

// Values per random sequence.
constexpr int64_t BLOCK = 4096;

D2V_CLONES void add_dropped(const float *x, const float *add, float *out, int64_t n, float factor, uint32_t start,
                            uint32_t below) {
  for (int64_t i = 0; i < n; ++i) out[i] = add[i] + drop_value(x[i] * factor, start, i, below);
}

// Returns a block of `x` as floats: a pointer into `x`, or to a converted copy in `buffer`.
const float *load(const at::Tensor &x, int64_t from, int64_t n, float *buffer) {
  if (x.scalar_type() == at::kFloat) return x.const_data_ptr<float>() + from;
  widen_row(reinterpret_cast<const uint16_t *>(x.const_data_ptr<at::BFloat16>()) + from, buffer, n);
  return buffer;
}

// out = add + dropout(x), in the kind of `out`.
void drop(const at::Tensor &x, const at::Tensor *add, at::Tensor &out, double p, uint64_t key) {
  RECORD_FUNCTION("data2vec::dropout", {});
  auto below = threshold(p);
  auto scale = static_cast<float>(1.0 / (1.0 - p));
  int64_t n = x.numel();
  at::parallel_for(0, (n + BLOCK - 1) / BLOCK, 8, [&](int64_t begin, int64_t end) {
    float from[BLOCK], more[BLOCK], to[BLOCK];
    for (int64_t block = begin; block < end; ++block) {
      int64_t at = block * BLOCK, len = std::min(BLOCK, n - at);
      auto start = static_cast<uint32_t>(mix(key ^ mix(static_cast<uint64_t>(block))));
      bool direct = out.scalar_type() == at::kFloat;
      float *result = direct ? out.mutable_data_ptr<float>() + at : to;
      const float *values = load(x, at, len, from);
      if (add) {
        add_dropped(values, load(*add, at, len, more), result, len, scale, start, below);
      } else {
        drop_row(values, result, len, scale, start, below);
      }
      if (!direct)
        narrow_row(to, reinterpret_cast<uint16_t *>(out.mutable_data_ptr<at::BFloat16>()) + at, len);
    }
  });
}

bool is_supported(const at::Tensor &x) {
  return x.is_cpu() && (x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16);
}

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Applies the forward pass's dropout to the gradient; the result has kind `kind`.
at::Tensor drop_grad(AutogradContext *ctx, const at::Tensor &grad, at::ScalarType kind) {
  auto from = grad.contiguous(), out = at::empty(from.sizes(), from.options().dtype(kind));
  drop(from, nullptr, out, ctx->saved_data["p"].toDouble(), static_cast<uint64_t>(ctx->saved_data["key"].toInt()));
  return out;
}

struct Dropout : torch::autograd::Function<Dropout> {
  static at::Tensor forward(AutogradContext *ctx, const at::Tensor &x, double p, int64_t key) {
    ctx->saved_data["p"] = p;
    ctx->saved_data["key"] = key;
    auto from = x.contiguous(), out = at::empty_like(from);
    drop(from, nullptr, out, p, static_cast<uint64_t>(key));
    return out;
  }
  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    return {drop_grad(ctx, grads[0], grads[0].scalar_type()), {}, {}};
  }
};

// residual + dropout(x) in one pass; saves no tensor.
struct ResidualDropout : torch::autograd::Function<ResidualDropout> {
  static at::Tensor forward(AutogradContext *ctx, const at::Tensor &residual, const at::Tensor &x, double p,
                            int64_t key) {
    ctx->saved_data["p"] = p;
    ctx->saved_data["key"] = key;
    ctx->saved_data["kind"] = static_cast<int64_t>(x.scalar_type());
    auto add = residual.contiguous(), from = x.contiguous(), out = at::empty_like(add);
    drop(from, &add, out, p, static_cast<uint64_t>(key));
    return out;
  }
  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    auto kind = static_cast<at::ScalarType>(ctx->saved_data["kind"].toInt());
    return {grads[0], drop_grad(ctx, grads[0], kind), {}, {}};
  }
};

}  // namespace
}  // namespace d2v

extern "C" {

int d2v_dropout(TensorPtr x, double p, TensorPtr out, char **error) {
  return guarded(error, [&] {
    if (!d2v::is_supported(*x)) {
      *out = at::dropout(*x, p, true);
    } else {
      *out = d2v::Dropout::apply(*x, p, static_cast<int64_t>(d2v::next_key()));
    }
  });
}

int d2v_residual_dropout(TensorPtr residual, TensorPtr x, double p, TensorPtr out, char **error) {
  return guarded(error, [&] {
    bool supported = d2v::is_supported(*x) && d2v::is_supported(*residual) && x->sizes() == residual->sizes();
    if (!supported || p == 0.0) {
      *out = at::add(*residual, p == 0.0 ? *x : at::dropout(*x, p, true));
    } else {
      *out = d2v::ResidualDropout::apply(*residual, *x, p, static_cast<int64_t>(d2v::next_key()));
    }
  });
}

// Independent f32 samples of N(0, std²), by the Box-Muller transform.
int d2v_noise(const int64_t *sizes, size_t dims, int type, int index, double std, TensorPtr out, char **error) {
  return guarded(error, [&] {
    auto device = at::Device(static_cast<c10::DeviceType>(type), static_cast<c10::DeviceIndex>(index));
    at::IntArrayRef size(sizes, dims);
    if (!device.is_cpu()) {
      *out = at::randn(size, at::TensorOptions().device(device)).mul_(std);
      return;
    }
    RECORD_FUNCTION("data2vec::noise", {});
    *out = at::empty(size);
    auto key = d2v::next_key();
    int64_t n = out->numel();
    float *to = out->mutable_data_ptr<float>();
    constexpr int64_t PAIRS = 8192;
    at::parallel_for(0, (n + 2 * PAIRS - 1) / (2 * PAIRS), 1, [&](int64_t begin, int64_t end) {
      at::AutoDispatchBelowADInplaceOrView guard;
      auto radius = at::empty({PAIRS}), angle = at::empty({PAIRS});
      float *r = radius.mutable_data_ptr<float>(), *a = angle.mutable_data_ptr<float>();
      for (int64_t block = begin; block < end; ++block) {
        auto start = static_cast<uint32_t>(d2v::mix(key ^ d2v::mix(static_cast<uint64_t>(block))));
        for (uint32_t i = 0; i < PAIRS; ++i) {
          // (0, 1] and [0, 2π)
          r[i] = static_cast<float>((d2v::draw(start, 2 * i) >> 8) + 1) * 0x1p-24f;
          a[i] = static_cast<float>(d2v::draw(start, 2 * i + 1) >> 8) * (0x1p-24f * 6.28318531f);
        }
        radius.log_().mul_(-2 * std * std).sqrt_();
        auto sine = angle.sin(), cosine = angle.cos();
        const float *s = sine.const_data_ptr<float>(), *c = cosine.const_data_ptr<float>();
        int64_t at = block * 2 * PAIRS, len = std::min(2 * PAIRS, n - at);
        for (int64_t i = 0; i < len; ++i) to[at + i] = r[i / 2] * (i % 2 ? s[i / 2] : c[i / 2]);
      }
    });
  });
}

}
