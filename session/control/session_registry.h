// SessionRegistry: the sessions of this host as directories, one each:
//
//   <root>/sessions/<name>/   session.json   what it was started with (SessionConfig as protobuf JSON)
//                             control.sock   SessionControl, while it lives
//                             end.json       how it ended (SessionEnd), once it has
//                             console.log, session.log, *.sock, disks of restored sessions
//
// There is no other record: what the directories say is the truth, for any number of programs. Thread-safe (no state).
#pragma once

#include <sys/types.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "base/fd.h"
#include "base/status.h"
#include "proto/aliases.h"
#include "proto/session.grpc.pb.h"

namespace still::session {

struct SessionEntry {
  std::string name;
  std::string directory;
  sessionpb::SessionConfig config;
  bool alive = false;
  std::optional<sessionpb::SessionEnd> end;  // Known when it ended in an orderly way.
};

class SessionRegistry {
 public:
  // `root`: the state directory; made on first use.
  explicit SessionRegistry(std::string root) : root_(std::move(root)) {}

  const std::string& root() const { return root_; }
  std::string Directory(const std::string& name) const;
  // Makes the directory of a new session. ALREADY_EXISTS says whether the one in the way lives.
  absl::StatusOr<std::string> Create(const std::string& name) const;
  absl::StatusOr<std::vector<SessionEntry>> List() const;
  // NOT_FOUND suggests a name, or lists those there are.
  absl::StatusOr<SessionEntry> Find(const std::string& name) const;
  // The whole name of the session that is meant by `name` or its beginning (base/name_match.h).
  absl::StatusOr<std::string> Resolve(const std::string& name) const;
  // Deletes an ended session's directory, restored disks included. FAILED_PRECONDITION while it lives.
  absl::Status Remove(const std::string& name) const;
  // NOT_FOUND: no such session. UNAVAILABLE: it has ended.
  absl::StatusOr<std::unique_ptr<sessionpb::SessionControl::Stub>> Connect(const std::string& name) const;

  // Ends a session by force and waits until its still-session is gone, so that nothing touches its directory any more.
  // UNAVAILABLE: it is not running. DEADLINE_EXCEEDED: it does not end.
  absl::Status End(const std::string& name, absl::Duration timeout) const;

  // Starts still-session for a directory made by Create, in the background, and waits until it is ready (booted to its
  // agent, or restored and thawed) or has failed; its error is returned then. `ram`: the memory image of a restore. The
  // program is looked up beside the running one, or in STILL_SESSION_PROGRAM. `ram` is borrowed,
  // and so is `disk_secret`: what config.disk_server needs, or invalid.
  absl::StatusOr<sessionpb::LaunchReport> Launch(const sessionpb::SessionConfig& config, const OwnedFd& ram,
                                                 absl::Duration timeout, const OwnedFd& disk_secret = OwnedFd()) const;

 private:
  std::vector<std::string> Names() const;

  std::string root_;
};

// For still-session itself.
absl::StatusOr<sessionpb::SessionConfig> ReadSessionConfig(const std::string& directory);
absl::Status WriteSessionEnd(const std::string& directory, const sessionpb::SessionEnd& end);

// "still-session" beside the running program, or in ../lib/stillpoint; what `environment` names comes first.
absl::StatusOr<std::string> FindSibling(const std::string& program, const char* environment);

}  // namespace still::session
