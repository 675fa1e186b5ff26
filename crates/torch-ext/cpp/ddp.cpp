// DistributedDataParallel's reducer: sums gradients over ranks, overlapped with the backward pass.
#include <chrono>

#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/distributed/c10d/comm.hpp>
#include <torch/csrc/distributed/c10d/reducer.hpp>

#include "group.h"

namespace {

using Clock = std::chrono::steady_clock;
using Future = c10::intrusive_ptr<c10::ivalue::Future>;

// Pending all-reduces of a backward pass, and when the last one was launched.
struct Pending {
  std::vector<Future> futures;
  Clock::time_point last_launch;
};

// Communication hook that sums over ranks; the reducer's default is the mean.
class SumHook : public c10d::CppCommHookInterface<c10d::ProcessGroup *> {
 public:
  SumHook(c10d::ProcessGroup *group, Pending *pending) : CppCommHookInterface(group), pending(pending) {}

  Future runHook(c10d::GradBucket &bucket) override {
    std::vector<at::Tensor> tensors{bucket.getBufferRef()};
    pending->last_launch = Clock::now();
    auto future = state_->allreduce(tensors)->getFuture();
    pending->futures.push_back(future);
    return future;
  }

 private:
  Pending *pending;
};

struct ReducerDdp : Ddp {
  c10::intrusive_ptr<c10d::ProcessGroup> group;
  Pending pending;
  std::unique_ptr<c10d::Reducer> reducer;

  ReducerDdp(D2vGroup &handle, const std::vector<at::Tensor> &params, size_t bucket) {
    group = c10::make_intrusive<c10d::ProcessGroup>(handle.backend->getRank(), handle.size);
    group->setBackend(params.at(0).device().type(), handle.kind, handle.backend);
    group->setDefaultBackend(handle.kind);
    // A small first bucket, so that communication starts early.
    std::vector<size_t> caps{bucket / 25, bucket};
    auto [buckets, limits] = c10d::compute_bucket_assignment_by_size(params, caps);
    // The backward pass reaches the last parameters first.
    std::reverse(buckets.begin(), buckets.end());
    auto cap = static_cast<int64_t>(bucket);
    reducer = std::make_unique<c10d::Reducer>(
        params, buckets, group, std::vector<bool>(params.size(), false), cap,
        /*find_unused_parameters=*/true,  // LayerDrop
        /*gradient_as_bucket_view=*/false, std::unordered_map<size_t, std::string>{}, cap / 25,
        /*skip_all_reduce_unused_params=*/false, /*use_python_reducer=*/false, std::vector<int64_t>{});
    reducer->register_comm_hook(std::make_unique<SumHook>(group.get(), &pending));
  }

  void backward(const at::Tensor &loss) {
    pending.futures.clear();
    pending.last_launch = Clock::now();
    reducer->prepare_for_backward({loss});
    torch::autograd::backward({loss}, {});
  }
};

}  // namespace

struct D2vDdp {
  std::shared_ptr<std::unique_ptr<Ddp>> inner;
};

extern "C" {

D2vDdp *d2v_ddp(D2vGroup *group, TensorPtr *params, size_t count, size_t bucket, char **error) {
  D2vDdp *handle = nullptr;
  guarded(error, [&] {
    backend(group);
    TORCH_CHECK(count > 0, "ddp: the list of parameters is empty");
    std::unique_ptr<Ddp> reducer = std::make_unique<ReducerDdp>(*group, list(params, count), bucket);
    auto inner = std::make_shared<std::unique_ptr<Ddp>>(std::move(reducer));
    group->ddps.push_back(inner);
    handle = new D2vDdp{inner};
  });
  return handle;
}

void d2v_ddp_free(D2vDdp *ddp) {
  ddp->inner->reset();
  delete ddp;
}

// *wait_ns: nanoseconds from the launch of the last all-reduce until all were done. *comm_failed:
// nonzero if the failure is an all-reduce's, not the local backward pass's.
int d2v_ddp_backward(D2vDdp *ddp, TensorPtr loss, int64_t *wait_ns, int *comm_failed, char **error) {
  auto *reducer = static_cast<ReducerDdp *>(ddp->inner->get());
  auto result = guarded(error, [&] {
    TORCH_CHECK(reducer, "this process has left the group");
    reducer->backward(*loss);
    *wait_ns = std::chrono::nanoseconds(Clock::now() - reducer->pending.last_launch).count();
  });
  *comm_failed = !reducer;
  if (result != 0 && reducer)
    for (auto &future : reducer->pending.futures) *comm_failed |= future->completed() && future->hasError();
  return result;
}

}
