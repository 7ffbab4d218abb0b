// RollbackJournal: one rollback of a session at a time, and an end for those that were killed.
//
// <state>/rollbacks/NAME is locked (flock(2), which the kernel gives up with the process) while a rollback of session NAME is
// under way. Before anything is made it says what is going to be made; all names follow from its tag:
//
//   DISK.rollback-TAG, DISK.before-rollback-TAG               beside each disk outside of the session's directory
//   sessions/.NAME.rollback-TAG, .NAME.before-rollback-TAG    beside the session's directory
//
// Whoever finds the file unlocked finishes what its writer could not (settles it): the session has come up on its new
// disks, and the old ones go; or it has not, and the old ones come back to their places. Either way nothing is left.
#pragma once

#include <string>
#include <vector>

#include "base/fd.h"
#include "base/status.h"
#include "session/control/session_registry.h"

namespace still::snapshot {

class RollbackJournal {
 public:
  // Settles what an earlier rollback of this session left. FAILED_PRECONDITION: another one is under way, or what one
  // left cannot be settled yet, because the session is just starting.
  static absl::StatusOr<RollbackJournal> Open(const session::SessionRegistry& sessions, const std::string& session);
  RollbackJournal(RollbackJournal&&) = default;
  RollbackJournal& operator=(RollbackJournal&&) = default;
  // Settles, and goes unless something could not be settled.
  ~RollbackJournal();

  // Durable before it returns. `disks`: the real paths of the files that will be replaced.
  absl::Status Begin(const std::vector<std::string>& disks);
  // The session runs on what was swapped in: what was before is not needed any more.
  absl::Status Started();

  // Names of what is made.
  const std::string& tag() const { return tag_; }
  // For the disks of the safety snapshot, when the rollback has failed.
  std::string safety_tag() const;
  std::string staging() const;
  std::string before() const;

 private:
  RollbackJournal(session::SessionRegistry sessions, std::string session, OwnedFd file);
  absl::Status Append(const std::string& line);

  session::SessionRegistry sessions_;
  std::string session_;
  std::string tag_;
  OwnedFd file_;  // Invalid: moved from.
};

// Settles every rollback whose process is gone; what cannot be settled is logged, and tried again by the next sweep. Quick
// when there is none; leaves those alone that are under way.
void SweepRollbacks(const session::SessionRegistry& sessions);

}  // namespace still::snapshot
