// StopLease: the promise that a process stopped by SIGSTOP is continued, whatever becomes of who stopped it.
//
//   STILL_ASSIGN_OR_RETURN(StopLease lease, StopLease::Make(pidfd));   // while the process runs
//   STILL_RETURN_IF_ERROR(lease.Begin(absl::Seconds(2)));              // from here on SIGCONT is certain
//   ... SIGSTOP, work, SIGCONT ...
//   absl::Status held = lease.End();                                   // was it stopped all the while?
//
// SIGSTOP outlives its sender, so the promise is kept by somebody else: a keeper, forked before the stop, in a session
// of its own and deaf to every signal that can be ignored. It sends SIGCONT when the time is over and when its holder
// dies. What it cannot survive is the end of everything at once (SIGKILL to a whole control group); systemd units that
// run still-session should therefore say KillMode=process.
//
// Not thread-safe. Move-only. Nothing here knows what the process is.
#pragma once

#include <sys/types.h>

#include <utility>

#include "absl/time/time.h"
#include "base/fd.h"
#include "base/status.h"

namespace still::session {

class StopLease {
 public:
  // Forks the keeper; nothing is promised yet. `pidfd` is only borrowed.
  static absl::StatusOr<StopLease> Make(int pidfd);
  StopLease(StopLease&& other) noexcept
      : keeper_(std::exchange(other.keeper_, -1)), channel_(std::move(other.channel_)) {}
  StopLease& operator=(StopLease&&) = delete;
  StopLease(const StopLease&) = delete;
  // As if the holder had died: the keeper continues what may be stopped. Waits for that.
  ~StopLease();

  // Returns once the keeper has answered, so that no stop comes before its promise. Once.
  absl::Status Begin(absl::Duration length);
  // The holder has sent SIGCONT. OK when the keeper had not done so before; ABORTED when the lease had ended: the
  // process ran again before its time. Once.
  absl::Status End();

 private:
  StopLease(pid_t keeper, OwnedFd channel) : keeper_(keeper), channel_(std::move(channel)) {}

  pid_t keeper_;
  OwnedFd channel_;  // Its end of file tells the keeper that the holder is gone.
};

}  // namespace still::session
