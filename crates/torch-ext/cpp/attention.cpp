// Self-attention on CPUs, a group of heads at a time, so that scores stay in the cache. Neither
// scores nor dropout masks are saved: the backward pass recomputes them.
#include "kernels.h"
#include "shim.h"

#include <ATen/Parallel.h>
#include <ATen/record_function.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <array>
#include <cmath>

#include <torch/csrc/autograd/custom_function.h>

namespace d2v {
namespace {

// Size of a group's scores: about a core's L2 cache.
constexpr int64_t GROUP_BYTES = 1 << 20;

// x = x · scale + bias.
D2V_CLONES void scale_and_add(float *__restrict x, const float *__restrict bias, int64_t n, float scale) {
  if (bias) {
    for (int64_t i = 0; i < n; ++i) x[i] = x[i] * scale + bias[i];
  } else {
    for (int64_t i = 0; i < n; ++i) x[i] *= scale;
  }
}

D2V_CLONES float max_of(const float *x, int64_t n) {
  // Lane by lane: the compiler does not vectorise a scalar maximum because of NaN.
  constexpr int64_t LANES = 32;
  float lanes[LANES];
  for (int64_t l = 0; l < LANES; ++l) lanes[l] = -INFINITY;
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES)
    for (int64_t l = 0; l < LANES; ++l) lanes[l] = x[i + l] > lanes[l] ? x[i + l] : lanes[l];
  float max = -INFINITY;
  for (int64_t l = 0; l < LANES; ++l) max = lanes[l] > max ? lanes[l] : max;
  for (; i < n; ++i) max = x[i] > max ? x[i] : max;
  return max;
}

// x = exp(x - max). Returns the sum.
D2V_CLONES float exp_and_sum(float *x, int64_t n, float max) {
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    x[i] = exp_nonpositive(x[i] - max);
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

// Gradient of the softmax, times `scale`; `out` may alias `grad`.
D2V_CLONES void softmax_grad(const float *weights, const float *grad, float *out, int64_t n, float sum, float scale) {
  for (int64_t i = 0; i < n; ++i) out[i] = weights[i] * (grad[i] - sum) * scale;
}

// Dropout of a row of attention weights.
struct Drop {
  uint32_t start, below;
  float factor;

  // Drops values of a row and multiplies the others by `by`.
  void apply(float *x, int64_t n, float by) const {
    if (below) {
      drop_row(x, x, n, by * factor, start, below);
    } else if (by != 1.0f) {
      multiply(x, n, by);
    }
  }
};

// A row of a contiguous f32 or bf16 tensor, accessed as floats.
struct Row {
  float *values;
  uint16_t *stored;  // null if `values` points into the tensor
  int64_t n;
  Row(at::Tensor &x, int64_t row, int64_t n, float *buffer) : values(buffer), stored(nullptr), n(n) {
    if (x.scalar_type() == at::kFloat) {
      values = x.mutable_data_ptr<float>() + row * n;
    } else {
      stored = reinterpret_cast<uint16_t *>(x.mutable_data_ptr<at::BFloat16>()) + row * n;
      widen_row(stored, buffer, n);
    }
  }
  void store() {
    if (stored) narrow_row(values, stored, n);
  }
};

// Some heads of one sequence, or all heads of several sequences.
struct Group {
  int64_t row, rows, head, heads;
  int64_t count() const { return rows * heads; }
};

struct Shape {
  int64_t rows, tokens, heads, width;  // B, T, H, d
  double scale, p;
  uint64_t key;

  // Size of a group: as many heads of a sequence as keep their scores in the cache, or all heads of
  // several sequences if their inputs fit too. One batched product of many heads costs less than
  // many products of one.
  Group group() const {
    int64_t scores = tokens * tokens * 4, all = scores + 3 * tokens * width * 4;
    int64_t some = std::min(heads, std::max<int64_t>(1, GROUP_BYTES / scores));
    int64_t several = std::min(rows / 8, GROUP_BYTES / (heads * all));
    return {0, some < heads ? 1 : std::max<int64_t>(1, several), 0, some};
  }
  // Returns a view of a group's queries, keys or values (`part` 0, 1, 2): (r, h, T, d).
  at::Tensor view(const at::Tensor &qkv, const Group &g, int64_t part) const {
    auto some = qkv.narrow(0, g.row, g.rows).view({g.rows, tokens, 3, heads, width});
    return some.select(2, part).narrow(2, g.head, g.heads).transpose(1, 2);
  }
  // Returns a view of a group's slice of an output (B, T, D): (r, h, T, d).
  at::Tensor out_view(const at::Tensor &x, const Group &g) const {
    auto some = x.narrow(0, g.row, g.rows).view({g.rows, tokens, heads, width});
    return some.narrow(2, g.head, g.heads).transpose(1, 2);
  }
  // Merges rows and heads to (g, T, d). bf16 products would copy a non-contiguous operand each
  // time, so copy it once.
  at::Tensor merged(const at::Tensor &x, const Group &g) const {
    auto all = x.reshape({g.count(), tokens, width});
    return all.scalar_type() == at::kBFloat16 ? all.contiguous() : all;
  }
  // Returns (sequence, head, query) of row `i` of a group's scores.
  std::array<int64_t, 3> position(const Group &g, int64_t i) const {
    int64_t head = i / tokens;
    return {g.row + head / g.heads, g.head + head % g.heads, i % tokens};
  }
  // Start of the random sequence of a row of scores.
  uint32_t start(int64_t b, int64_t head, int64_t query) const {
    auto row = static_cast<uint64_t>((b * heads + head) * tokens + query);
    return static_cast<uint32_t>(mix(key ^ mix(row)));
  }
  Drop drop(const std::array<int64_t, 3> &at) const {
    if (p == 0) return {0, 0, 1.0f};
    return {start(at[0], at[1], at[2]), threshold(p), static_cast<float>(1.0 / (1.0 - p))};
  }
  // Calls `work` for all groups, in parallel.
  template <typename F> void each_group(F &&work) const {
    Group size = group();
    int64_t across = (heads + size.heads - 1) / size.heads, down = (rows + size.rows - 1) / size.rows;
    at::parallel_for(0, down * across, 1, [&](int64_t begin, int64_t end) {
      // Autograd and autocast settings are thread-local.
      at::AutoDispatchBelowADInplaceOrView no_autograd;
      c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
      for (int64_t i = begin; i < end; ++i) {
        int64_t row = i / across * size.rows, head = i % across * size.heads;
        work(Group{row, std::min(size.rows, rows - row), head, std::min(size.heads, heads - head)});
      }
    });
  }
};

// Rows of a bias broadcast to (B, H, T, T).
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
  const float *row(const std::array<int64_t, 3> &at) const {
    return values ? values + at[0] * strides[0] + at[1] * strides[1] + at[2] * strides[2] : nullptr;
  }
};

// Returns the output (B, T, D) and the log-sum-exp of the scores (B, H, T).
std::pair<at::Tensor, at::Tensor> attend(const at::Tensor &qkv, const at::Tensor &bias, const Shape &s) {
  RECORD_FUNCTION("data2vec::attention", {});
  auto out = at::empty({s.rows, s.tokens, s.heads * s.width}, qkv.options());
  auto log_sum_exp = at::empty({s.rows, s.heads, s.tokens}, qkv.options().dtype(at::kFloat));
  float *sums = log_sum_exp.mutable_data_ptr<float>();
  Bias biases(bias, s);
  auto scale = static_cast<float>(s.scale);
  int64_t n = s.tokens;
  s.each_group([&](const Group &g) {
    auto q = s.merged(s.view(qkv, g, 0), g), k = s.merged(s.view(qkv, g, 1), g), v = s.merged(s.view(qkv, g, 2), g);
    auto scores = at::bmm(q, k.transpose(1, 2));
    std::vector<float> buffer(static_cast<size_t>(n));
    for (int64_t i = 0; i < g.count() * n; ++i) {
      auto at = s.position(g, i);
      Row row(scores, i, n, buffer.data());
      scale_and_add(row.values, biases.row(at), n, scale);
      float max = max_of(row.values, n);
      float sum = exp_and_sum(row.values, n, max);
      sums[(at[0] * s.heads + at[1]) * n + at[2]] = max + std::log(sum);
      s.drop(at).apply(row.values, n, 1.0f / sum);
      row.store();
    }
    s.out_view(out, g).copy_(at::bmm(scores, v).view({g.rows, g.heads, n, s.width}));
  });
  return {out, log_sum_exp};
}

// Returns the gradients of qkv and, if `want_bias`, of the broadcast bias (B, H, T, T).
std::pair<at::Tensor, at::Tensor> attend_backward(const at::Tensor &grad, const at::Tensor &qkv,
                                                  const at::Tensor &bias, const at::Tensor &log_sum_exp,
                                                  const Shape &s, bool want_bias) {
  RECORD_FUNCTION("data2vec::attention_backward", {});
  auto out = at::empty_like(qkv);
  at::Tensor bias_grad;
  if (want_bias) bias_grad = at::empty({s.rows, s.heads, s.tokens, s.tokens}, qkv.options().dtype(at::kFloat));
  float *bias_grads = want_bias ? bias_grad.mutable_data_ptr<float>() : nullptr;
  const float *sums = log_sum_exp.const_data_ptr<float>();
  Bias biases(bias, s);
  auto scale = static_cast<float>(s.scale);
  int64_t n = s.tokens;
  s.each_group([&](const Group &g) {
    auto q = s.merged(s.view(qkv, g, 0), g), k = s.merged(s.view(qkv, g, 1), g), v = s.merged(s.view(qkv, g, 2), g),
         out_grad = s.merged(s.out_view(grad, g), g);
    at::Tensor scores;  // (g, T, T)
    {
      // Recomputation is not part of attention's flop: hide it from profiles.
      at::RecordFunctionGuard no_profile(/*is_enabled=*/false);
      scores = at::bmm(q, k.transpose(1, 2));
    }
    auto grads = at::bmm(out_grad, v.transpose(1, 2));
    std::vector<float> buffers(2 * static_cast<size_t>(n));
    // In place: scores become weights, and gradients of weights become gradients of scores.
    for (int64_t i = 0; i < g.count() * n; ++i) {
      auto at = s.position(g, i);
      auto drop = s.drop(at);
      int64_t index = (at[0] * s.heads + at[1]) * n + at[2];
      Row weight(scores, i, n, buffers.data()), row(grads, i, n, buffers.data() + n);
      scale_and_add(weight.values, biases.row(at), n, scale);
      exp_and_sum(weight.values, n, sums[index]);
      drop.apply(row.values, n, 1.0f);
      float sum = dot(weight.values, row.values, n);
      if (bias_grads) softmax_grad(weight.values, row.values, bias_grads + index * n, n, sum, 1.0f);
      softmax_grad(weight.values, row.values, row.values, n, sum, scale);
      drop.apply(weight.values, n, 1.0f);
      row.store();
      weight.store();
    }
    auto store = [&](int64_t part, const at::Tensor &x) {
      s.view(out, g, part).copy_(x.view({g.rows, g.heads, n, s.width}));
    };
    store(0, at::bmm(grads, k));
    store(1, at::bmm(grads.transpose(1, 2), q));
    store(2, at::bmm(scores.transpose(1, 2), out_grad));
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
    auto [out, log_sum_exp] = attend(x, bias, s);
    ctx->save_for_backward({x, bias, log_sum_exp});
    ctx->saved_data["heads"] = heads;
    ctx->saved_data["p"] = p;
    ctx->saved_data["key"] = key;
    return out;
  }
  static variable_list backward(AutogradContext *ctx, variable_list grads) {
    auto saved = ctx->get_saved_variables();
    auto s = shape_of(saved[0], ctx->saved_data["heads"].toInt(), ctx->saved_data["p"].toDouble(),
                      ctx->saved_data["key"].toInt());
    bool want_bias = ctx->needs_input_grad(1);
    auto grad = grads[0].contiguous().to(saved[0].scalar_type());
    auto [qkv_grad, bias_grad] = attend_backward(grad, saved[0], saved[1], saved[2], s, want_bias);
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
    TORCH_CHECK(qkv->is_cpu(), "attention: qkv must be on the CPU, not on ", qkv->device());
    TORCH_CHECK(qkv->dim() == 3 && qkv->size(2) % (3 * heads) == 0,
                "attention: expected (B, T, 3·D) with D divisible by ", heads, " heads, got ", qkv->sizes());
    auto kind = qkv->scalar_type();
    TORCH_CHECK(kind == at::kFloat || kind == at::kBFloat16, "attention: qkv must be f32 or bf16, not ", kind);
    auto key = p > 0 ? static_cast<int64_t>(d2v::next_key()) : 0;
    *out = d2v::Attention::apply(*qkv, bias ? *bias : at::empty({0}), heads, p, key);
  });
}

}
