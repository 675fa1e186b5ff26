// Facts about the LibTorch that this was compiled against.
#include <torch/headeronly/version.h>

extern "C" const char *d2v_libtorch_version() { return TORCH_VERSION; }
