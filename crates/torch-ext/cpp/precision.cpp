// Autocast.
#include "shim.h"

#include <ATen/autocast_mode.h>

extern "C" {

// Enables autocast to `kind` (c10::ScalarType) for devices of `type` (c10::DeviceType).
int d2v_autocast_enter(int type, int kind, int *was_on, char **error) {
  return guarded(error, [&] {
    auto device = static_cast<c10::DeviceType>(type);
    *was_on = at::autocast::is_autocast_enabled(device);
    at::autocast::set_autocast_dtype(device, static_cast<c10::ScalarType>(kind));
    at::autocast::set_autocast_enabled(device, true);
    at::autocast::increment_nesting();
  });
}

int d2v_autocast_on(int type) { return at::autocast::is_autocast_enabled(static_cast<c10::DeviceType>(type)); }

// Restores the previous setting; the outermost call clears the cache of converted weights.
int d2v_autocast_leave(int type, int was_on, char **error) {
  return guarded(error, [&] {
    if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
    at::autocast::set_autocast_enabled(static_cast<c10::DeviceType>(type), was_on);
  });
}

}
