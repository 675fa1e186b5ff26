// Types shared by dist.cpp and ddp.cpp.
#pragma once
#include <memory>

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include "dist.h"

// Gradient reducer of a group; the implementation is in ddp.cpp.
struct Ddp {
  virtual ~Ddp() = default;
};

struct D2vStore {
  c10::intrusive_ptr<c10d::Store> store;
};

struct D2vGroup {
  c10::intrusive_ptr<c10d::Backend> backend;
  c10d::ProcessGroup::BackendType kind;
  int size;
  // Shared with their handles. They keep the backend's connections open, so leaving the group
  // resets them.
  std::vector<std::shared_ptr<std::unique_ptr<Ddp>>> ddps;
};

inline c10d::Backend &backend(D2vGroup *group) {
  TORCH_CHECK(group->backend, "this process has left the group");
  return *group->backend;
}
