// Replaces dist.cpp and ddp.cpp if the feature `distributed` is off or LibTorch has no process
// groups. Creating a store fails, so the functions that take one are never called.
#include "dist.h"

namespace {

int unavailable(char **error) {
  return guarded(error, [] {
    TORCH_CHECK(false, "process groups are unavailable: built without the feature `distributed`, ",
                "or against a LibTorch without c10d");
  });
}

}  // namespace

extern "C" {

D2vStore *d2v_store(const char *, int, int, int, int64_t, const char *, char **error) {
  unavailable(error);
  return nullptr;
}
void d2v_store_free(D2vStore *) {}
int d2v_store_set(D2vStore *, const char *, const char *, size_t, char **error) { return unavailable(error); }
int d2v_store_get(D2vStore *, const char *, int64_t, char **, size_t *, char **error) { return unavailable(error); }
int d2v_store_add(D2vStore *, const char *, int64_t, int64_t *, char **error) { return unavailable(error); }
int d2v_store_has(D2vStore *, const char *, int *, char **error) { return unavailable(error); }
D2vGroup *d2v_group(D2vStore *, int, int, int, int64_t, const char *, char **error) {
  unavailable(error);
  return nullptr;
}
int d2v_has_nccl() { return 0; }
int d2v_group_leave(D2vGroup *, char **error) { return unavailable(error); }
void d2v_group_free(D2vGroup *) {}
int d2v_all_reduce(D2vGroup *, TensorPtr *, size_t, size_t, int, char **error) { return unavailable(error); }
int d2v_broadcast(D2vGroup *, TensorPtr *, size_t, size_t, int, char **error) { return unavailable(error); }
int d2v_all_gather(D2vGroup *, TensorPtr, TensorPtr, char **error) { return unavailable(error); }
int d2v_reduce_scatter(D2vGroup *, TensorPtr, TensorPtr, char **error) { return unavailable(error); }
int d2v_barrier(D2vGroup *, char **error) { return unavailable(error); }
int d2v_monitored_barrier(D2vGroup *, int64_t, char **error) { return unavailable(error); }
D2vDdp *d2v_ddp(D2vGroup *, TensorPtr *, size_t, size_t, char **error) {
  unavailable(error);
  return nullptr;
}
void d2v_ddp_free(D2vDdp *) {}
int d2v_ddp_backward(D2vDdp *, TensorPtr, int64_t *, int *, char **error) { return unavailable(error); }

}
