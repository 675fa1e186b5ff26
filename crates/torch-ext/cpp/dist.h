// Process groups: implemented by dist.cpp and ddp.cpp; dist_absent.cpp returns errors instead.
#pragma once
#include "shim.h"

struct D2vStore;
struct D2vGroup;
struct D2vDdp;

extern "C" {
D2vStore *d2v_store(const char *host, int port, int is_server, int ranks, int64_t timeout_ms, const char *prefix,
                    char **error);
void d2v_store_free(D2vStore *store);
int d2v_store_set(D2vStore *store, const char *key, const char *data, size_t length, char **error);
int d2v_store_get(D2vStore *store, const char *key, int64_t timeout_ms, char **data, size_t *length, char **error);
int d2v_store_add(D2vStore *store, const char *key, int64_t value, int64_t *sum, char **error);
int d2v_store_has(D2vStore *store, const char *key, int *has, char **error);
D2vGroup *d2v_group(D2vStore *store, int nccl, int rank, int size, int64_t timeout_ms, const char *address,
                    char **error);
int d2v_has_nccl();
int d2v_group_leave(D2vGroup *group, char **error);
void d2v_group_free(D2vGroup *group);
int d2v_all_reduce(D2vGroup *group, TensorPtr *tensors, size_t count, size_t bucket, int op, char **error);
int d2v_broadcast(D2vGroup *group, TensorPtr *tensors, size_t count, size_t bucket, int root, char **error);
int d2v_all_gather(D2vGroup *group, TensorPtr tensor, TensorPtr out, char **error);
int d2v_reduce_scatter(D2vGroup *group, TensorPtr tensor, TensorPtr out, char **error);
int d2v_barrier(D2vGroup *group, char **error);
int d2v_monitored_barrier(D2vGroup *group, int64_t timeout_ms, char **error);
D2vDdp *d2v_ddp(D2vGroup *group, TensorPtr *params, size_t count, size_t bucket, char **error);
void d2v_ddp_free(D2vDdp *ddp);
int d2v_ddp_backward(D2vDdp *ddp, TensorPtr loss, int64_t *wait_ns, int *comm_failed, char **error);
}
