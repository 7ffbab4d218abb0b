// AdoptIdentity: what makes a restored guest a machine of its own. It owns the order and what a failure means; the
// steps are in guest_files.h and identity_kernel.h.
//
// The random generator comes first, and without the kernel's acknowledgement nothing else happens: a guest that runs on
// with its twin's random numbers gives away the twin's keys. The clock is right before anybody writes a file. Names and
// keys come after the thaw, because they are files.
#pragma once

#include <functional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/clock.h"
#include "base/status.h"
#include "guest-agent/freeze_controller.h"
#include "guest-agent/identity/guest_files.h"
#include "guest-agent/identity/identity_kernel.h"

namespace still::agent {

class IdentityAdopter {
 public:
  struct Parts {
    IdentityKernel& kernel;
    FreezeController& controller;
    Clock& clock;
    std::string root;  // "": the guest's own files.
    std::string hooks = "/etc/still/restore.d";
    GuestFiles::RunProgram run = RunInGuest;
    static absl::StatusOr<CommandOutput> RunInGuest(std::vector<std::string> argv, absl::Duration timeout);
  };
  explicit IdentityAdopter(Parts parts) : parts_(std::move(parts)), files_(parts_.root, parts_.run) {}

  // guest.proto says what it means. Thread-safe; a second call waits for the first.
  absl::StatusOr<pb::AdoptIdentityResponse> Adopt(const pb::AdoptIdentityRequest& request);

 private:
  void Step(pb::AdoptIdentityResponse& response, const char* name, const std::function<StepResult()>& run);
  absl::Status MixEntropy(const pb::AdoptIdentityRequest& request);
  StepResult SetClock(const pb::AdoptIdentityRequest& request, absl::Duration received);
  StepResult SetHostName(const std::string& name);
  StepResult SetMacs(const pb::AdoptIdentityRequest& request);
  StepResult RunHooks(const pb::AdoptIdentityRequest& request, pb::AdoptIdentityResponse& response);

  const Parts parts_;
  GuestFiles files_;
  absl::Mutex mutex_;
  std::string adopted_id_ ABSL_GUARDED_BY(mutex_);  // restore_id of `adopted_`.
  pb::AdoptIdentityResponse adopted_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace still::agent
