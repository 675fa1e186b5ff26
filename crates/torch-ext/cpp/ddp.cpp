// The reducer of DistributedDataParallel: sums gradients over ranks while the backward pass computes more.
#include <chrono>

#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/distributed/c10d/comm.hpp>
#include <torch/csrc/distributed/c10d/reducer.hpp>

#include "group.h"

namespace {

using Clock = std::chrono::steady_clock;
using Flight = c10::intrusive_ptr<c10::ivalue::Future>;

// What of a backward pass is on its way, and when the last of it left.
struct Flights {
  std::vector<Flight> futures;
  Clock::time_point last;
};

// Sums, where LibTorch's own would be means over ranks.
class Sum : public c10d::CppCommHookInterface<c10d::ProcessGroup *> {
 public:
  Sum(c10d::ProcessGroup *group, Flights *flights) : CppCommHookInterface(group), flights(flights) {}

  Flight runHook(c10d::GradBucket &bucket) override {
    std::vector<at::Tensor> tensors{bucket.getBufferRef()};
    flights->last = Clock::now();
    auto future = state_->allreduce(tensors)->getFuture();
    flights->futures.push_back(future);
    return future;
  }

 private:
  Flights *flights;
};

struct Reducing : Ddp {
  c10::intrusive_ptr<c10d::ProcessGroup> group;
  Flights flights;
  std::unique_ptr<c10d::Reducer> reducer;

  Reducing(D2vGroup &of, const std::vector<at::Tensor> &params, size_t bucket) {
    group = c10::make_intrusive<c10d::ProcessGroup>(of.backend->getRank(), of.size);
    group->setBackend(params.at(0).device().type(), of.kind, of.backend);
    group->setDefaultBackend(of.kind);
    // A small bucket first: its journey begins early.
    std::vector<size_t> caps{bucket / 25, bucket};
    auto [buckets, limits] = c10d::compute_bucket_assignment_by_size(params, caps);
    // The backward pass meets the last parameters first.
    std::reverse(buckets.begin(), buckets.end());
    auto cap = static_cast<int64_t>(bucket);
    reducer = std::make_unique<c10d::Reducer>(
        params, buckets, group, std::vector<bool>(params.size(), false), cap,
        /*find_unused_parameters=*/true,  // layers are dropped
        /*gradient_as_bucket_view=*/false, std::unordered_map<size_t, std::string>{}, cap / 25,
        /*skip_all_reduce_unused_params=*/false, /*use_python_reducer=*/false, std::vector<int64_t>{});
    reducer->register_comm_hook(std::make_unique<Sum>(group.get(), &flights));
  }

  void backward(const at::Tensor &loss) {
    flights.futures.clear();
    flights.last = Clock::now();
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
  D2vDdp *made = nullptr;
  guarded(error, [&] {
    backend(group);
    TORCH_CHECK(count > 0, "there are no gradients to sum");
    std::unique_ptr<Ddp> reducing = std::make_unique<Reducing>(*group, list(params, count), bucket);
    auto inner = std::make_shared<std::unique_ptr<Ddp>>(std::move(reducing));
    group->ddps.push_back(inner);
    made = new D2vDdp{inner};
  });
  return made;
}

void d2v_ddp_free(D2vDdp *ddp) {
  ddp->inner->reset();
  delete ddp;
}

// *waited: nanoseconds from when the last sum set out until all had come. *lost: whether it is one of the
// sums that failed.
int d2v_ddp_backward(D2vDdp *ddp, TensorPtr loss, int64_t *waited, int *lost, char **error) {
  auto *reducing = static_cast<Reducing *>(ddp->inner->get());
  auto result = guarded(error, [&] {
    TORCH_CHECK(reducing, "this process has left the group");
    reducing->backward(*loss);
    *waited = std::chrono::nanoseconds(Clock::now() - reducing->flights.last).count();
  });
  *lost = !reducing;
  if (result != 0 && reducing)
    for (auto &future : reducing->flights.futures) *lost |= future->completed() && future->hasError();
  return result;
}

}
