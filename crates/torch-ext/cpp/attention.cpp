// Attention on CPUs, a group of heads at a time, so that scores stay in the cache: neither scores nor
// dropout masks are stored, nothing is transposed in memory. The backward pass computes scores again.
#include "kernels.h"
#include "shim.h"

#include <ATen/Parallel.h>
#include <ATen/record_function.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <cmath>

#include <torch/csrc/autograd/custom_function.h>

namespace d2v {
namespace {

// Scores of a group: about what a core's second cache holds.
constexpr int64_t GROUP_BYTES = 1 << 20;

D2V_CLONES void scale_and_add(float *x, const float *bias, int64_t n, float scale) {
  if (bias) {
    for (int64_t i = 0; i < n; ++i) x[i] = x[i] * scale + bias[i];
  } else {
    for (int64_t i = 0; i < n; ++i) x[i] = x[i] * scale;
  }
}

D2V_CLONES float max_of(const float *x, int64_t n) {
  // Lane by lane: a maximum in one variable would not be vectorised, as it could be of NaN.
  constexpr int64_t LANES = 32;
  float lanes[LANES];
  for (int64_t l = 0; l < LANES; ++l) lanes[l] = -INFINITY;
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES)
    for (int64_t l = 0; l < LANES; ++l) lanes[l] = x[i + l] > lanes[l] ? x[i + l] : lanes[l];
  float most = -INFINITY;
  for (int64_t l = 0; l < LANES; ++l) most = lanes[l] > most ? lanes[l] : most;
  for (; i < n; ++i) most = x[i] > most ? x[i] : most;
  return most;
}

D2V_CLONES float exp_and_sum(float *x, int64_t n, float most) {
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    x[i] = exp_of_negative(x[i] - most);
    sum += x[i];
  }
  return sum;
}

D2V_CLONES void multiply(float *x, int64_t n, float factor) {
  for (int64_t i = 0; i < n; ++i) x[i] *= factor;
}

D2V_CLONES float dot(const float *a, const float *b, int64_t n) {
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

// The softmax's gradient, times the factor of the scores.
D2V_CLONES void softmax_grad(const float *p, float *grad, int64_t n, float sum, float scale) {
  for (int64_t i = 0; i < n; ++i) grad[i] = p[i] * (grad[i] - sum) * scale;
}

// A row of a contiguous f32 or bf16 tensor, worked on as floats.
struct Row {
  float *values;
  uint16_t *stored;  // null when `values` is the row itself
  int64_t n;
  Row(at::Tensor &x, int64_t row, int64_t n, float *buffer) : values(buffer), stored(nullptr), n(n) {
    if (x.scalar_type() == at::kFloat) {
      values = x.mutable_data_ptr<float>() + row * n;
    } else {
      stored = reinterpret_cast<uint16_t *>(x.mutable_data_ptr<at::BFloat16>()) + row * n;
      widen_row(stored, buffer, n);
    }
  }
  void store(const float *from) {
    if (stored) {
      narrow_row(from, stored, n);
    } else if (from != values) {
      std::memcpy(values, from, static_cast<size_t>(n) * sizeof(float));
    }
  }
};

struct Shape {
  int64_t rows, tokens, heads, width;  // B, T, H, d
  double scale, p;
  uint64_t key;

  int64_t group() const {
    int64_t fit = GROUP_BYTES / (tokens * tokens * static_cast<int64_t>(sizeof(float)));
    return std::min(heads, std::max<int64_t>(1, fit));
  }
  // `part` 0, 1, 2: queries, keys, values of a group of heads of row `b`, (g, T, d), a view.
  at::Tensor view(const at::Tensor &qkv, int64_t b, int64_t first, int64_t count, int64_t part) const {
    auto row = qkv.select(0, b).view({tokens, 3, heads, width}).select(1, part);  // (T, H, d)
    return row.narrow(1, first, count).transpose(0, 1);
  }
  // The same of what is as wide as the model: (B, T, D).
  at::Tensor out_view(const at::Tensor &x, int64_t b, int64_t first, int64_t count) const {
    return x.select(0, b).view({tokens, heads, width}).narrow(1, first, count).transpose(0, 1);
  }
  // Where the random numbers of a row of scores begin.
  uint32_t start(int64_t b, int64_t head, int64_t query) const {
    auto place = static_cast<uint64_t>((b * heads + head) * tokens + query);
    return static_cast<uint32_t>(mix(key ^ mix(place)));
  }
  // Calls work(b, first head, count) for all groups, on all threads.
  template <typename F> void each_group(F &&work) const {
    int64_t size = group(), groups = (heads + size - 1) / size;
    at::parallel_for(0, rows * groups, 1, [&](int64_t begin, int64_t end) {
      // Other threads know nothing of this one's settings.
      at::AutoDispatchBelowADInplaceOrView no_autograd;
      c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
      for (int64_t i = begin; i < end; ++i) {
        int64_t first = i % groups * size;
        work(i / groups, first, std::min(size, heads - first));
      }
    });
  }
};

// Rows of a bias that is broadcast to (B, H, T, T).
struct Bias {
  const float *values = nullptr;
  int64_t strides[3] = {0, 0, 0};
  at::Tensor keep;
  Bias(const at::Tensor &bias, const Shape &shape) {
    if (bias.numel() == 0) return;
    auto last = bias.to(at::kFloat);
    if (last.stride(-1) != 1 && last.size(-1) > 1) last = last.contiguous();
    keep = last.expand({shape.rows, shape.heads, shape.tokens, shape.tokens});
    if (keep.stride(-1) != 1 && shape.tokens > 1) keep = keep.contiguous();
    values = keep.const_data_ptr<float>();
    for (int i = 0; i < 3; ++i) strides[i] = keep.stride(i);
  }
  const float *row(int64_t b, int64_t head, int64_t query) const {
    return values ? values + b * strides[0] + head * strides[1] + query * strides[2] : nullptr;
  }
};

// Scores to attention weights, in place.
void softmax(float *x, const float *bias, int64_t n, float scale) {
  scale_and_add(x, bias, n, scale);
  multiply(x, n, 1.0f / exp_and_sum(x, n, max_of(x, n)));
}

at::Tensor attend(const at::Tensor &qkv, const at::Tensor &bias, const Shape &s) {
  RECORD_FUNCTION("data2vec::attention", {});
  auto out = at::empty({s.rows, s.tokens, s.heads * s.width}, qkv.options());
  Bias biases(bias, s);
  auto below = threshold(s.p);
  auto keep = static_cast<float>(1.0 / (1.0 - s.p));
  s.each_group([&](int64_t b, int64_t first, int64_t count) {
    auto scores = at::bmm(s.view(qkv, b, first, count, 0), s.view(qkv, b, first, count, 1).transpose(1, 2));
    std::vector<float> buffer(static_cast<size_t>(s.tokens));
    for (int64_t i = 0; i < count * s.tokens; ++i) {
      int64_t head = first + i / s.tokens, query = i % s.tokens;
      Row row(scores, i, s.tokens, buffer.data());
      softmax(row.values, biases.row(b, head, query), s.tokens, static_cast<float>(s.scale));
      if (s.p > 0) drop_row(row.values, row.values, s.tokens, keep, s.start(b, head, query), below);
      row.store(row.values);
    }
    s.out_view(out, b, first, count).copy_(at::bmm(scores, s.view(qkv, b, first, count, 2)));
  });
  return out;
}

// Gradients of qkv and, if wanted, of the scores' bias before broadcasting: (B, H, T, T).
std::pair<at::Tensor, at::Tensor> attend_backward(const at::Tensor &grad, const at::Tensor &qkv,
                                                  const at::Tensor &bias, const Shape &s, bool want_bias) {
  RECORD_FUNCTION("data2vec::attention_backward", {});
  auto out = at::empty_like(qkv);
  at::Tensor bias_grad;
  if (want_bias) bias_grad = at::empty({s.rows, s.heads, s.tokens, s.tokens}, qkv.options().dtype(at::kFloat));
  Bias biases(bias, s);
  auto below = threshold(s.p);
  auto keep = static_cast<float>(1.0 / (1.0 - s.p));
  s.each_group([&](int64_t b, int64_t first, int64_t count) {
    auto q = s.view(qkv, b, first, count, 0), k = s.view(qkv, b, first, count, 1),
         v = s.view(qkv, b, first, count, 2), g = s.out_view(grad, b, first, count);
    at::Tensor weights;  // (g, T, T)
    {
      // Profiles count what attention needs; that this is done twice is our choice.
      at::RecordFunctionGuard uncounted(/*is_enabled=*/false);
      weights = at::bmm(q, k.transpose(1, 2));
    }
    auto grads = at::bmm(g, v.transpose(1, 2));
    size_t n = static_cast<size_t>(s.tokens);
    std::vector<float> buffers(3 * n);
    for (int64_t i = 0; i < count * s.tokens; ++i) {
      int64_t head = first + i / s.tokens, query = i % s.tokens;
      Row weight(weights, i, s.tokens, buffers.data()), grad_row(grads, i, s.tokens, buffers.data() + n);
      softmax(weight.values, biases.row(b, head, query), s.tokens, static_cast<float>(s.scale));
      auto start = s.start(b, head, query);
      if (s.p > 0) drop_row(grad_row.values, grad_row.values, s.tokens, keep, start, below);
      float sum = dot(weight.values, grad_row.values, s.tokens);
      if (want_bias) {
        float *to = bias_grad.mutable_data_ptr<float>() +
                    ((b * s.heads + head) * s.tokens + query) * s.tokens;
        std::memcpy(to, grad_row.values, n * sizeof(float));
        softmax_grad(weight.values, to, s.tokens, sum, 1.0f);
      }
      softmax_grad(weight.values, grad_row.values, s.tokens, sum, static_cast<float>(s.scale));
      grad_row.store(grad_row.values);
      if (s.p > 0) {
        float *dropped = buffers.data() + 2 * n;
        drop_row(weight.values, dropped, s.tokens, keep, start, below);
        weight.store(dropped);
      } else {
        weight.store(weight.values);
      }
    }
    s.view(out, b, first, count, 0).copy_(at::bmm(grads, k));
    s.view(out, b, first, count, 1).copy_(at::bmm(grads.transpose(1, 2), q));
    s.view(out, b, first, count, 2).copy_(at::bmm(weights.transpose(1, 2), g));
  });
  return {out, bias_grad};
}

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Attention : torch::autograd::Function<Attention> {
  static at::Tensor forward(AutogradContext *ctx, const at::Tensor &qkv, const at::Tensor &bias, int64_t heads,
                            double p, int64_t key) {
    auto x = qkv.contiguous();
    auto s = shape_of(x, heads, p, key);
    ctx->save_for_backward({x, bias});
    ctx->saved_data["heads"] = heads;
    ctx->saved_data["p"] = p;
    ctx->saved_data["key"] = key;
    return attend(x, bias, s);
  }
  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    auto saved = ctx->get_saved_variables();
    auto s = shape_of(saved[0], ctx->saved_data["heads"].toInt(), ctx->saved_data["p"].toDouble(),
                      ctx->saved_data["key"].toInt());
    bool want_bias = ctx->needs_input_grad(1);
    auto grad = grads[0].contiguous().to(saved[0].scalar_type());
    auto [qkv_grad, bias_grad] = attend_backward(grad, saved[0], saved[1], s, want_bias);
    if (want_bias) bias_grad = bias_grad.sum_to_size(saved[1].sizes()).to(saved[1].scalar_type());
    return {qkv_grad, bias_grad, {}, {}, {}};
  }
  static Shape shape_of(const at::Tensor &qkv, int64_t heads, double p, int64_t key) {
    int64_t width = qkv.size(2) / (3 * heads);
    return {qkv.size(0), qkv.size(1), heads, width, 1.0 / std::sqrt(static_cast<double>(width)), p,
            static_cast<uint64_t>(key)};
  }
};

}  // namespace
}  // namespace d2v

extern "C" {

// `bias` may be null.
int d2v_attention(TensorPtr qkv, TensorPtr bias, int64_t heads, double p, TensorPtr out, char **error) {
  return guarded(error, [&] {
    TORCH_CHECK(qkv->is_cpu(), "this attention is for CPUs");
    TORCH_CHECK(qkv->dim() == 3 && qkv->size(2) % (3 * heads) == 0, "(B, T, 3·D) is wanted");
    auto kind = qkv->scalar_type();
    TORCH_CHECK(kind == at::kFloat || kind == at::kBFloat16, "f32 or bf16 is wanted");
    auto key = p > 0 ? static_cast<int64_t>(d2v::next_key()) : 0;
    *out = d2v::Attention::apply(*qkv, bias ? *bias : at::empty({0}), heads, p, key);
  });
}

}
