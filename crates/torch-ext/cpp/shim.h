// Common to all shim functions: they return 0, or 1 with a message in *error that the caller frees.
#pragma once
#include <cstdlib>
#include <cstring>
#include <exception>
#include <vector>

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

using TensorPtr = at::Tensor *;

inline std::vector<at::Tensor> list(TensorPtr *pointers, size_t count) {
  std::vector<at::Tensor> tensors;
  tensors.reserve(count);
  for (size_t i = 0; i < count; ++i) tensors.push_back(*pointers[i]);
  return tensors;
}

// Flattens all dimensions but the last: a matrix.
inline at::Tensor rows(const at::Tensor &x) { return x.reshape({-1, x.size(-1)}); }

// Runs `body` and converts exceptions to a return code and a message.
template <typename F> int guarded(char **error, F &&body) {
  try {
    body();
    return 0;
  } catch (const c10::Error &e) {
    *error = strdup(e.what_without_backtrace());
  } catch (const std::exception &e) {
    *error = strdup(e.what());
  } catch (...) {
    *error = strdup("unknown C++ exception");
  }
  return 1;
}
