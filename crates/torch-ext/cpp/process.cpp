// LibTorch's version and global settings.
#include "shim.h"

#include <ATen/Context.h>
#include <torch/headeronly/version.h>

extern "C" {

const char *d2v_libtorch_version() { return TORCH_VERSION; }

// Uses deterministic algorithms; operators without one fail.
int d2v_set_deterministic(int on, char **error) {
  return guarded(error, [&] {
    // cuBLAS is deterministic only with a fixed workspace, and reads the variable once.
    if (on) setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/0);
    auto &context = at::globalContext();
    context.setDeterministicAlgorithms(on, /*warn_only=*/false);
    // Filling uninitialised memory costs time, and no code here reads it.
    context.setDeterministicFillUninitializedMemory(false);
    context.setDeterministicCuDNN(on);
    if (on) context.setBenchmarkCuDNN(false);
  });
}

}
