// Statistics of LibTorch's CUDA allocator.
#include "shim.h"

#include <c10/core/CachingDeviceAllocator.h>

namespace {

c10::DeviceAllocator *cuda_allocator() {
  auto *allocator = c10::getDeviceAllocator(c10::DeviceType::CUDA);
  TORCH_CHECK(allocator && allocator->initialized(), "CUDA memory: CUDA is not initialised");
  return allocator;
}

}  // namespace

extern "C" {

// Bytes: allocated now, peak allocated since the last reset, free for allocation (device plus
// cache).
int d2v_cuda_memory(int index, uint64_t *current, uint64_t *peak, uint64_t *available, char **error) {
  return guarded(error, [&] {
    auto device = static_cast<c10::DeviceIndex>(index);
    auto *allocator = cuda_allocator();
    auto stats = allocator->getDeviceStats(device);
    auto aggregate = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    *current = static_cast<uint64_t>(stats.allocated_bytes[aggregate].current);
    *peak = static_cast<uint64_t>(stats.allocated_bytes[aggregate].peak);
    auto cached = static_cast<uint64_t>(stats.reserved_bytes[aggregate].current) - *current;
    *available = allocator->getMemoryInfo(device).first + cached;
  });
}

int d2v_cuda_reset_peak(int index, char **error) {
  return guarded(error, [&] {
    cuda_allocator()->resetPeakStats(static_cast<c10::DeviceIndex>(index));
  });
}

}
