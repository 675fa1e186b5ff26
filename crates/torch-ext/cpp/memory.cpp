// What LibTorch's allocator on a GPU has given out.
#include "shim.h"

#include <c10/core/CachingDeviceAllocator.h>

namespace {

c10::DeviceAllocator *cuda_allocator() {
  auto *allocator = c10::getDeviceAllocator(c10::DeviceType::CUDA);
  TORCH_CHECK(allocator && allocator->initialized(), "CUDA is not in use");
  return allocator;
}

}  // namespace

extern "C" {

// In bytes: given out now, most given out since the last reset, what is left of the device.
int d2v_cuda_memory(int index, uint64_t *current, uint64_t *peak, uint64_t *available, char **error) {
  return guarded(error, [&] {
    auto device = static_cast<c10::DeviceIndex>(index);
    auto *from = cuda_allocator();
    auto stats = from->getDeviceStats(device);
    auto all = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    *current = static_cast<uint64_t>(stats.allocated_bytes[all].current);
    *peak = static_cast<uint64_t>(stats.allocated_bytes[all].peak);
    auto cached = static_cast<uint64_t>(stats.reserved_bytes[all].current) - *current;
    *available = from->getMemoryInfo(device).first + cached;
  });
}

int d2v_cuda_reset_peak(int index, char **error) {
  return guarded(error, [&] {
    cuda_allocator()->resetPeakStats(static_cast<c10::DeviceIndex>(index));
  });
}

}
