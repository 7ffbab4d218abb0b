// One freeze of the FreezeController, for its two sources only: the state machine (freeze_controller.cc) and the steps of
// Quiesce (freeze_steps.cc).
#pragma once

#include <atomic>
#include <string>
#include <vector>

#include "guest-agent/freeze_controller.h"

namespace still::agent {

inline constexpr uint32_t kDefaultHookTimeoutMs = 10000;
inline constexpr uint32_t kDefaultHooksTimeoutMs = 60000;
inline constexpr uint32_t kDefaultPresyncTimeoutMs = 30000;

inline uint64_t Microseconds(absl::Duration duration) {
  return static_cast<uint64_t>(absl::ToInt64Microseconds(duration));
}

inline std::string CauseName(pb::ThawCause cause) { return pb::ThawCause_Name(cause); }

// One freeze from Begin to Finish. Guarded by mutex_, except what is const or atomic.
struct FreezeController::Run {
  Run(const pb::QuiesceRequest& request, absl::string_view connection)
      : token(request.token()),
        connection(connection),
        hook_policy(request.hook_policy() == pb::HOOK_POLICY_UNSPECIFIED ? pb::HOOK_FAIL : request.hook_policy()),
        hook_timeout(
            absl::Milliseconds(request.hook_timeout_ms() == 0 ? kDefaultHookTimeoutMs : request.hook_timeout_ms())),
        hooks_timeout(
            absl::Milliseconds(request.hooks_timeout_ms() == 0 ? kDefaultHooksTimeoutMs : request.hooks_timeout_ms())),
        presync_timeout(absl::Milliseconds(request.presync_timeout_ms() == 0 ? kDefaultPresyncTimeoutMs
                                                                             : request.presync_timeout_ms())) {}
  const std::string token;
  const std::string connection;
  const pb::HookPolicy hook_policy;
  const absl::Duration hook_timeout;     // Each.
  const absl::Duration hooks_timeout;    // All of them.
  const absl::Duration presync_timeout;  // All file systems.

  absl::Duration lease;
  absl::Duration deadline = absl::InfiniteDuration();  // Set when the first file system is about to be frozen.
  bool confirmed = false;                              // The host has shown that it knows of this freeze.
  bool worker_active = true;                           // Quiesce is still under way.
  bool freezing_begun =
      false;  // Before that no lease runs and there is nothing to thaw, and the worker notices a cancel soon by itself.
  std::atomic<bool> run_thaw_hooks = true;  // A Thaw may say so while the lease's end unwinds already.
  int unwinders = 0;
  pb::ThawCause cause = pb::THAW_CAUSE_UNSPECIFIED;
  std::atomic<bool> cancelled_flag = false;  // cause is set; for the hook that is running.
  std::vector<FrozenFileSystem> held;        // In freezing order.
  std::vector<std::string> hooks_run;        // In freezing order; their thaw is owed.
  pb::QuiesceResponse response;
  pb::ThawResponse thaw;
  absl::Duration thaw_started;
  std::vector<Watched> watched;
};

}  // namespace still::agent
