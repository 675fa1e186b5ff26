// Column sums and column sums of squares of a matrix, in double precision.
#include "kernels.h"
#include "shim.h"

#include <ATen/Parallel.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/grad_mode.h>

namespace {

D2V_CLONES void add_row(const float *x, double *sums, double *squares, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    double value = x[i];
    sums[i] += value;
    squares[i] += value * value;
  }
}

}  // namespace

extern "C" {

// (N, D) to (1 + 2·D): N, column sums, column sums of squares.
int d2v_moments(TensorPtr x, TensorPtr out, char **error) {
  return guarded(error, [&] {
    torch::autograd::AutoGradMode no_grad(false);
    TORCH_CHECK(x->dim() == 2, "moments: expected (N, D), got ", x->sizes());
    int64_t rows = x->size(0), dim = x->size(1);
    auto options = x->options().dtype(at::kDouble);
    if (!x->is_cpu()) {
      auto wide = x->to(at::kDouble);
      auto count = at::full({1}, static_cast<double>(rows), options);
      *out = at::cat({count, wide.sum(0), wide.square().sum(0)});
      return;
    }
    auto values = x->to(at::kFloat).contiguous();
    auto moments = at::zeros({1 + 2 * dim}, options);
    const float *from = values.const_data_ptr<float>();
    double *sums = moments.mutable_data_ptr<double>();
    *sums++ = static_cast<double>(rows);
    // Threads split the columns, so that sums need no reduction.
    at::parallel_for(0, dim, 64, [&](int64_t begin, int64_t end) {
      for (int64_t row = 0; row < rows; ++row)
        add_row(from + row * dim + begin, sums + begin, sums + dim + begin, end - begin);
    });
    *out = moments;
  });
}

}
