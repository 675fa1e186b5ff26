// The LibTorch that this was compiled against, and its settings.
#include "shim.h"

#include <ATen/Context.h>
#include <torch/headeronly/version.h>

extern "C" {

const char *d2v_libtorch_version() { return TORCH_VERSION; }

// Whether operators give the same every time, or fail where they cannot.
int d2v_set_deterministic(int on, char **error) {
  return guarded(error, [&] {
    // cuBLAS does so with buffers of a fixed size alone, and looks when it starts.
    if (on) setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/0);
    auto &context = at::globalContext();
    context.setDeterministicAlgorithms(on, /*warn_only=*/false);
    // Memory that was not written yet is not read here: filling it would cost time for nothing.
    context.setDeterministicFillUninitializedMemory(false);
    context.setDeterministicCuDNN(on);
    if (on) context.setBenchmarkCuDNN(false);
  });
}

}
