// Operator profiler: calls, CPU time and floating-point operations by operator.
#include "shim.h"

#include <chrono>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include <ATen/record_function.h>

namespace {

using Clock = std::chrono::steady_clock;

struct Stats {
  uint64_t calls = 0;
  double seconds = 0;
  double flop = 0;
};

std::mutex mutex;
// By (is scope, name): operators' and scopes' names may be the same.
std::map<std::pair<bool, std::string>, Stats> stats;
at::CallbackHandle handle = 0;
bool recording = false;

// Depth of operators with counted flop on this thread: the operators they call (autocast calls the
// same operator again) are not counted.
thread_local int counted_depth = 0;

// Stack of the time in callees, by running operator of this thread.
thread_local std::vector<double> callee_time;

struct Context : at::ObserverContext {
  Clock::time_point start;
  double flop = 0;
};

double elements(c10::IntArrayRef sizes, size_t from = 0) {
  double n = 1;
  for (size_t i = from; i < sizes.size(); ++i) n *= static_cast<double>(sizes[i]);
  return n;
}

bool starts_with(const std::string &name, const char *prefix) { return name.rfind(prefix, 0) == 0; }

bool ends_with(const std::string &name, const std::string &suffix) {
  return name.size() >= suffix.size() &&
         name.compare(name.size() - suffix.size(), suffix.size(), suffix) == 0;
}

// Flop of matrix products, convolutions and fused attention; 0 for other operators.
double count_flop(const std::string &name, c10::ArrayRef<const c10::IValue> in) {
  auto sizes = [&](size_t i) { return in[i].toTensor().sizes(); };
  auto tensor = [&](size_t i) { return i < in.size() && in[i].isTensor() && in[i].toTensor().defined(); };
  if (name == "aten::mm" || name == "aten::bmm") {
    if (tensor(0) && tensor(1)) return 2 * elements(sizes(0)) * static_cast<double>(sizes(1).back());
  } else if (name == "aten::addmm" || name == "aten::addmm_" || name == "aten::baddbmm") {
    if (tensor(1) && tensor(2)) return 2 * elements(sizes(1)) * static_cast<double>(sizes(2).back());
  } else if (name == "aten::convolution") {
    // Each output value is a sum over one kernel. The output does not exist yet: its size follows
    // from stride and padding.
    if (tensor(0) && tensor(1)) {
      auto stride = in[3].toIntVector(), padding = in[4].toIntVector(), dilation = in[5].toIntVector();
      double out = static_cast<double>(sizes(0)[0]) * static_cast<double>(sizes(1)[0]);
      for (size_t i = 2; i < sizes(0).size(); ++i) {
        auto reach = dilation[i - 2] * (sizes(1)[i] - 1) + 1;
        out *= static_cast<double>((sizes(0)[i] + 2 * padding[i - 2] - reach) / stride[i - 2] + 1);
      }
      return 2 * out * elements(sizes(1), 1);
    }
  } else if (name == "aten::convolution_backward") {
    // The gradients of input and weight each cost as much as the forward pass.
    if (tensor(0) && tensor(2)) {
      auto wanted = in.back().toBoolList();
      return 2 * elements(sizes(0)) * elements(sizes(2), 1) * (int(wanted[0]) + int(wanted[1]));
    }
  } else if (starts_with(name, "aten::_scaled_dot_product_")) {
    // Queries (B, H, T, d), keys (B, H, S, d): two products; five in the backward pass, one of
    // which recomputes the scores.
    bool backward = ends_with(name, "_backward");
    size_t q = backward ? 1 : 0;
    if (tensor(q) && tensor(q + 1)) {
      double product = 2 * elements(sizes(q)) * static_cast<double>(sizes(q + 1)[2]);
      return product * (backward ? 5 : 2);
    }
  }
  return 0;
}

std::unique_ptr<at::ObserverContext> on_start(const at::RecordFunction &fn) {
  auto context = std::make_unique<Context>();
  try {
    if (counted_depth == 0) context->flop = count_flop(fn.name(), fn.inputs());
  } catch (const std::exception &) {  // an unexpected signature: only its time counts
  }
  if (context->flop > 0) ++counted_depth;
  callee_time.push_back(0);
  context->start = Clock::now();
  return context;
}

void on_end(const at::RecordFunction &fn, at::ObserverContext *base) {
  auto *context = static_cast<Context *>(base);
  double took = std::chrono::duration<double>(Clock::now() - context->start).count();
  if (context->flop > 0) --counted_depth;
  double self = took;
  bool scope = fn.scope() == at::RecordScope::USER_SCOPE;
  if (!callee_time.empty()) {
    self -= callee_time.back();
    callee_time.pop_back();
  }
  if (!callee_time.empty()) callee_time.back() += took;
  std::lock_guard<std::mutex> lock(mutex);
  auto &s = stats[{scope, fn.name()}];
  s.calls += 1;
  s.seconds += scope ? took : self;
  s.flop += context->flop;
}

}  // namespace

extern "C" {

int d2v_profile_start(char **error) {
  return guarded(error, [] {
    std::lock_guard<std::mutex> lock(mutex);
    TORCH_CHECK(!recording, "profile: another profile is already running");
    stats.clear();
    handle = at::addGlobalCallback(at::RecordFunctionCallback(on_start, on_end)
                                       .needsInputs(true)
                                       .scopes({at::RecordScope::FUNCTION, at::RecordScope::USER_SCOPE}));
    recording = true;
  });
}

// Begins a named scope; end `*scope` with d2v_scope_end.
int d2v_scope_begin(const char *name, void **scope, char **error) {
  return guarded(error, [&] {
    auto *record = new at::RecordFunction(at::RecordScope::USER_SCOPE);
    *scope = record;
    if (record->isActive()) record->before(name);
  });
}

void d2v_scope_end(void *scope) { delete static_cast<at::RecordFunction *>(scope); }

// Stops profiling, calls `each` for each operator and scope, and clears the statistics.
int d2v_profile_stop(void (*each)(void *, const char *, int, uint64_t, double, double), void *to, char **error) {
  return guarded(error, [&] {
    at::removeCallback(handle);
    std::lock_guard<std::mutex> lock(mutex);
    recording = false;
    for (const auto &[key, s] : stats) each(to, key.second.c_str(), key.first, s.calls, s.seconds, s.flop);
    stats.clear();
  });
}

}
