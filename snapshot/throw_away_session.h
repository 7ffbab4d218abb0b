// A session that must not outlive whoever made it, however that ends: also by SIGKILL, at any instant.
//
//   STILL_ASSIGN_OR_RETURN(ThrowAwaySession place, ThrowAwaySession::Reserve(sessions, "drill"));
//   RestoreSnapshot(... .session = place.name() ...);
//   ...
//   STILL_RETURN_IF_ERROR(place.End());     // or let the destructor do it
//
// Two things hold that up. A janitor process of its own waits for the end of a pipe that only we hold, and then ends
// the session and removes its directory. And a lock file, <state>/throw-away/<name>, held while we live, tells the next
// one (Sweep) what both of them left, after a power cut, say.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/process.h"
#include "base/status.h"
#include "session/control/session_registry.h"

namespace still::snapshot {

class ThrowAwaySession {
 public:
  // A name that no session has or had: `prefix`, '-' and 8 random hex digits. Starts the janitor, which is
  // `still __janitor` beside the running program, or STILL_PROGRAM.
  static absl::StatusOr<ThrowAwaySession> Reserve(const session::SessionRegistry& sessions, const std::string& prefix);
  ThrowAwaySession(ThrowAwaySession&&) = default;
  ThrowAwaySession& operator=(ThrowAwaySession&&) = delete;
  ThrowAwaySession(const ThrowAwaySession&) = delete;
  ~ThrowAwaySession();

  const std::string& name() const { return name_; }
  // Ends the session, if it was started, and removes its directory. Blocks until nothing of it is left. Idempotent.
  absl::Status End();

 private:
  ThrowAwaySession(session::SessionRegistry sessions, std::string name, OwnedFd lock, OwnedFd life_line,
                   ChildProcess janitor);

  session::SessionRegistry sessions_;
  std::string name_;
  OwnedFd lock_;
  OwnedFd life_line_;
  ChildProcess janitor_;
  bool ended_ = false;
};

// Removes what throw-away sessions left whose makers are gone. For each of them `closed` is called before its lock file
// goes: if it fails, the next sweep tries again.
absl::Status SweepThrowAwaySessions(const session::SessionRegistry& sessions,
                                    const std::function<absl::Status(const std::string& name)>& closed);

// The janitor's whole life: blocks until `life_line` ends, then ends the session and removes its directory.
absl::Status RunJanitor(const session::SessionRegistry& sessions, const std::string& name, OwnedFd life_line);

}  // namespace still::snapshot
