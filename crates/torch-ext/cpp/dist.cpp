// LibTorch's process groups (c10d): Gloo on CPUs, and NCCL on GPUs if it was found.
#include "shim.h"

#include <sstream>

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <c10/util/Logging.h>
#include <torch/csrc/autograd/grad_mode.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#ifdef USE_C10D_NCCL
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#endif

#include "group.h"

// stubs/gloo assumes LibTorch 2.11.0's class layouts.
static_assert(sizeof(c10d::ProcessGroupGloo) == 488, "unexpected LibTorch version: check stubs/gloo against it");
static_assert(sizeof(c10d::ProcessGroupGloo::Options) == 176, "unexpected LibTorch version: check stubs/gloo against it");
#ifdef USE_C10D_NCCL
static_assert(sizeof(c10d::ProcessGroupNCCL) == 1112, "unexpected LibTorch version: ProcessGroupNCCL has changed");
#endif

using Millis = std::chrono::milliseconds;

namespace {

void wait(const c10::intrusive_ptr<c10d::Work> &work) { work->wait(); }

c10d::ReduceOp reduce_op(int op) {
  return op == 0 ? c10d::ReduceOp::SUM : c10d::ReduceOp::MAX;
}

std::vector<uint8_t> bytes(const char *data, size_t length) {
  return {reinterpret_cast<const uint8_t *>(data), reinterpret_cast<const uint8_t *>(data) + length};
}

// Flattens `tensors` in order to buckets of at most `bucket` bytes, launches `body` on all of them,
// and copies the results back.
template <typename F> void in_buckets(std::vector<at::Tensor> tensors, size_t bucket, F &&body) {
  torch::autograd::AutoGradMode no_grad(false);
  struct Bucket {
    std::vector<at::Tensor> flat;  // one tensor; its address must not change while in flight
    std::vector<at::Tensor> parts;
    c10::intrusive_ptr<c10d::Work> work;
  };
  std::vector<Bucket> buckets;
  for (size_t i = 0; i < tensors.size();) {
    Bucket next;
    std::vector<at::Tensor> pieces;
    size_t bytes = 0;
    auto kind = tensors[i].scalar_type();
    for (; i < tensors.size(); ++i) {
      auto size = tensors[i].nbytes();
      if (tensors[i].scalar_type() != kind || (!pieces.empty() && bytes + size > bucket)) break;
      pieces.push_back(tensors[i].detach().reshape(-1));
      next.parts.push_back(tensors[i].detach());
      bytes += size;
    }
    next.flat.push_back(at::cat(pieces));
    buckets.push_back(std::move(next));
  }
  for (auto &each : buckets) each.work = body(each.flat);
  for (auto &each : buckets) {
    wait(each.work);
    int64_t offset = 0;
    for (auto &part : each.parts) {
      part.copy_(each.flat[0].narrow(0, offset, part.numel()).view(part.sizes()));
      offset += part.numel();
    }
  }
}

}  // namespace

extern "C" {

// Connects to the store at host:port; `is_server` starts the server first.
D2vStore *d2v_store(const char *host, int port, int is_server, int ranks, int64_t timeout_ms, const char *prefix,
                    char **error) {
  D2vStore *handle = nullptr;
  guarded(error, [&] {
    // Failures are returned as errors; suppress LibTorch's log lines about them.
    setenv("TORCH_CPP_LOG_LEVEL", "FATAL", /*overwrite=*/0);
    c10::initLogging();
    c10d::TCPStoreOptions options;
    options.port = static_cast<uint16_t>(port);
    options.isServer = is_server;
    options.numWorkers = static_cast<size_t>(ranks);
    options.timeout = Millis(timeout_ms);
    auto store = c10::make_intrusive<c10d::TCPStore>(host, options);
    handle = new D2vStore{c10::make_intrusive<c10d::PrefixStore>(prefix, store)};
  });
  return handle;
}

void d2v_store_free(D2vStore *store) { delete store; }

int d2v_store_set(D2vStore *store, const char *key, const char *data, size_t length, char **error) {
  return guarded(error, [&] { store->store->set(key, bytes(data, length)); });
}

// Waits for the key; the caller frees *data.
int d2v_store_get(D2vStore *store, const char *key, int64_t timeout_ms, char **data, size_t *length, char **error) {
  return guarded(error, [&] {
    store->store->wait({key}, Millis(timeout_ms));
    auto value = store->store->get(key);
    *data = static_cast<char *>(malloc(value.size() + 1));
    TORCH_CHECK(*data, "out of memory");
    memcpy(*data, value.data(), value.size());
    *length = value.size();
  });
}

int d2v_store_add(D2vStore *store, const char *key, int64_t value, int64_t *sum, char **error) {
  return guarded(error, [&] { *sum = store->store->add(key, value); });
}

int d2v_store_has(D2vStore *store, const char *key, int *has, char **error) {
  return guarded(error, [&] { *has = store->store->check({key}); });
}

// `address`: this machine's address for Gloo; if empty, what its host name resolves to.
D2vGroup *d2v_group(D2vStore *store, int nccl, int rank, int size, int64_t timeout_ms, const char *address,
                    char **error) {
  D2vGroup *handle = nullptr;
  guarded(error, [&] {
    if (nccl) {
#ifdef USE_C10D_NCCL
      auto options = c10d::ProcessGroupNCCL::Options::create();
      options->timeout = Millis(timeout_ms);
      auto prefixed = c10::make_intrusive<c10d::PrefixStore>("nccl", store->store);
      auto group = c10::make_intrusive<c10d::ProcessGroupNCCL>(prefixed, rank, size, options);
      handle = new D2vGroup{group, c10d::ProcessGroup::NCCL, size, {}};
#else
      TORCH_CHECK(false, "built without NCCL; build it against a LibTorch with CUDA and NCCL's headers");
#endif
      return;
    }
    using Gloo = c10d::ProcessGroupGloo;
    auto options = Gloo::Options::create(Millis(timeout_ms));
    const char *interface = getenv("GLOO_SOCKET_IFNAME");
    if (interface && *interface) {
      std::stringstream names(interface);
      for (std::string name; std::getline(names, name, ',');)
        options->devices.push_back(Gloo::createDeviceForInterface(name));
    } else if (*address) {
      options->devices.push_back(Gloo::createDeviceForHostname(address));
    } else {
      options->devices.push_back(Gloo::createDefaultDevice());
    }
    options->threads = static_cast<int>(2 * options->devices.size());
    auto prefixed = c10::make_intrusive<c10d::PrefixStore>("gloo", store->store);
    auto group = c10::make_intrusive<Gloo>(prefixed, rank, size, options);
    handle = new D2vGroup{group, c10d::ProcessGroup::GLOO, size, {}};
  });
  return handle;
}

int d2v_has_nccl() {
#ifdef USE_C10D_NCCL
  return 1;
#else
  return 0;
#endif
}

// Closes all connections, so that other ranks' collectives fail at once instead of timing out.
int d2v_group_leave(D2vGroup *group, char **error) {
  return guarded(error, [&] {
    for (auto &ddp : group->ddps) ddp->reset();
    group->backend.reset();
  });
}

void d2v_group_free(D2vGroup *group) { delete group; }

int d2v_all_reduce(D2vGroup *group, TensorPtr *tensors, size_t count, size_t bucket, int op, char **error) {
  return guarded(error, [&] {
    c10d::AllreduceOptions options;
    options.reduceOp = reduce_op(op);
    in_buckets(list(tensors, count), bucket,
               [&](std::vector<at::Tensor> &flat) { return backend(group).allreduce(flat, options); });
  });
}

int d2v_broadcast(D2vGroup *group, TensorPtr *tensors, size_t count, size_t bucket, int root, char **error) {
  return guarded(error, [&] {
    c10d::BroadcastOptions options;
    options.rootRank = root;
    in_buckets(list(tensors, count), bucket,
               [&](std::vector<at::Tensor> &flat) { return backend(group).broadcast(flat, options); });
  });
}

int d2v_all_gather(D2vGroup *group, TensorPtr tensor, TensorPtr out, char **error) {
  return guarded(error, [&] {
    torch::autograd::AutoGradMode no_grad(false);
    auto input = tensor->detach().contiguous().unsqueeze(0);
    auto sizes = input.sizes().vec();
    sizes[0] = group->size;
    auto output = at::empty(sizes, input.options());
    wait(backend(group)._allgather_base(output, input));
    *out = output;
  });
}

int d2v_reduce_scatter(D2vGroup *group, TensorPtr tensor, TensorPtr out, char **error) {
  return guarded(error, [&] {
    torch::autograd::AutoGradMode no_grad(false);
    auto input = tensor->detach().contiguous();
    TORCH_CHECK(input.dim() > 0 && input.size(0) == group->size, "reduce_scatter: the first dimension of ",
                input.sizes(), " is not the number of ranks, ", group->size);
    auto sizes = input.sizes().vec();
    sizes[0] = 1;
    auto output = at::empty(sizes, input.options());
    wait(backend(group)._reduce_scatter_base(output, input));
    *out = output.squeeze(0);
  });
}

int d2v_barrier(D2vGroup *group, char **error) {
  return guarded(error, [&] { wait(backend(group).barrier()); });
}

int d2v_monitored_barrier(D2vGroup *group, int64_t timeout_ms, char **error) {
  return guarded(error, [&] {
    c10d::BarrierOptions options;
    options.timeout = Millis(timeout_ms);
    backend(group).monitoredBarrier(options, /*waitAllRanks=*/true);
  });
}

}
