// LibTorch contains Gloo and ships c10d's headers, but not Gloo's. c10d's headers use these types
// only behind pointers, so declarations suffice. Nothing here may be called or constructed.
#pragma once
#include <chrono>

namespace gloo {
class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
};
}  // namespace gloo
