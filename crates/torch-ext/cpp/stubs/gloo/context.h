// LibTorch has Gloo inside and ships c10d's headers, but not Gloo's own. c10d's name these types behind
// pointers alone, so declarations are enough. Nothing here may be called or made.
#pragma once
#include <chrono>

namespace gloo {
class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
};
}  // namespace gloo
