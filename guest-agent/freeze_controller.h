// FreezeController: freezes all or nothing, and never leaves the guest frozen.
//
//   THAWED --Quiesce--> FREEZING --all frozen--> FROZEN --Thaw, lease, SIGTERM--> THAWING --> THAWED
//                          `--an error, a lost caller, the lease----------------->'
//
// Invariants:
//  - the marker exists and the lease is armed before the first FIFREEZE and until after the last FITHAW; what comes
//    before (write-back, hooks) has limits of its own;
//  - every superblock that we froze is in exactly one place: in the hands of the thread that just froze it, in
//    Run::held, or in the hands of the thread that thaws it;
//  - whoever ends a freeze thaws what is held at that moment; the thread that is still inside a FIFREEZE (which cannot
//  be
//    interrupted) thaws what it got when it comes back. The last of them closes the run;
//  - a file system that fails to thaw stays held, and is tried again every second for ever.
//
// Thread-safe. Quiesce and Thaw block; everything else answers at once.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/status.h"
#include "guest-agent/disk_survey.h"
#include "guest-agent/freeze_marker.h"
#include "guest-agent/freeze_plan.h"
#include "guest-agent/freezer.h"
#include "guest-agent/frozen_file_system.h"
#include "guest-agent/hooks.h"
#include "guest-agent/lease_timer.h"
#include "guest-agent/recovery.h"
#include "guest-agent/thaw_hooks.h"
#include "proto/guest.pb.h"

namespace still::agent {

class FreezeController {
 public:
  struct Parts {
    Freezer& freezer;
    Hooks& hooks;
    Disks& disks;
    FreezeMarker marker;
    LeaseTimer& timer;
    Clock& clock;
    // Told true before anything freezes and false when everything is thawed: logging must not touch a disk in between.
    std::function<void(bool)> set_quiet = [](bool) {};
    // How long Thaw waits for a FIFREEZE that has not returned.
    absl::Duration thaw_patience = absl::Seconds(30);
  };
  explicit FreezeController(Parts parts);
  FreezeController(const FreezeController&) = delete;
  FreezeController& operator=(const FreezeController&) = delete;
  // Thaws. No call may be in progress.
  ~FreezeController();

  // guest.proto says what they mean. `connection` names where the call came from, for ConnectionLost.
  absl::StatusOr<pb::QuiesceResponse> Quiesce(const pb::QuiesceRequest& request, absl::string_view connection);
  absl::StatusOr<pb::RenewQuiesceResponse> Renew(const pb::RenewQuiesceRequest& request);
  absl::StatusOr<pb::ThawResponse> Thaw(const pb::ThawRequest& request);
  pb::QuiesceStatusResponse Status();

  // The Quiesce call with this token was cancelled before it was answered.
  void Abandon(const std::string& token);
  // Thaws a freeze that came from this connection and whose answer was never confirmed by a RenewQuiesce.
  void ConnectionLost(absl::string_view connection);
  // What was thawed after a predecessor's death, so that its token is known.
  void Recovered(const RecoveredFreeze& recovered);
  // SIGTERM: thaws, waiting as Thaw does.
  void ThawBeforeExit();
  // True from the begin of a freeze to its end: only a few calls are allowed then.
  bool gated();

 private:
  struct Run;
  absl::Status Begin(const pb::QuiesceRequest& request, absl::string_view connection)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  struct Unfrozen;
  // A device that must not be written to before the thaw, and how often it had been.
  struct Watched {
    DeviceId device;
    std::set<std::string> disks;
    uint64_t writes = 0;
  };
  // The steps of Quiesce (freeze_steps.cc), without the lock; they return as soon as the run is cancelled.
  absl::Status FreezeAll(Run& run, const pb::QuiesceRequest& request);
  absl::Status SyncAll(const std::vector<FrozenFileSystem>& opened, Run& run);
  absl::Status RunFreezeHooks(Run& run);
  absl::Status FreezeOpened(std::vector<FrozenFileSystem> opened, Run& run, Unfrozen& unfrozen);
  void LookAtDisks(const OpenForWriting& open, const Unfrozen& unfrozen, Run& run);
  // Empty: a file system that cannot freeze is clean, and its device had been written to `writes` times. Else why not.
  std::string WhyNotClean(const FrozenFileSystem& fs, const OpenForWriting& open, uint64_t& writes);
  absl::Status CheckCancelled(const Run& run) ABSL_LOCKS_EXCLUDED(mutex_);
  // The disks of those that have been written to since.
  std::vector<std::string> WrittenSince(const std::vector<Watched>& watched);

  void OnTimer();
  // Ends the freeze for the first `cause` given, and thaws what is held. Releases the lock while it does.
  void Cancel(Run& run, pb::ThawCause cause) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Unwind(Run& run) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Finish(Run& run) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<pb::ThawResponse> WaitUntilOver(const std::string& token) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  const pb::ThawResponse* PastThaw(absl::string_view token) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Remember(const std::string& token, pb::ThawResponse thaw) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  uint64_t NowNs() const;

  Parts parts_;
  ThawHooks thaw_hooks_;
  absl::Mutex mutex_;
  pb::QuiesceState state_ ABSL_GUARDED_BY(mutex_) = pb::THAWED;
  std::unique_ptr<Run> run_ ABSL_GUARDED_BY(mutex_);  // Null exactly when THAWED.
  // Tokens whose freeze is over, newest last: an answer for a repeated Thaw, and a bar to a Quiesce that comes late.
  std::deque<std::pair<std::string, pb::ThawResponse>> past_ ABSL_GUARDED_BY(mutex_);
  pb::ThawResponse last_thaw_ ABSL_GUARDED_BY(mutex_);
  std::string last_token_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace still::agent
