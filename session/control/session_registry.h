// SessionRegistry: the sessions of this host as directories, one each:
//
//   <root>/sessions/<name>/   lock           held by whoever makes the session, then by its still-session (session_lock.h)
//                             session.json   what it was started with (SessionConfig as protobuf JSON)
//                             start.json     when it was started last, in which life of the host (SessionStart)
//                             control.sock   SessionControl, once it is ready and while it lives
//                             end.json       how it ended (SessionEnd), once it has, in order
//                             console.log, session.log, *.sock, disks of restored sessions
//
// There is no other record: what the directories say is the truth, for any number of programs. Thread-safe (no state).
#pragma once

#include <sys/types.h>

#include <functional>
#include <map>
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
  bool alive = false;  // A process works for it: it is being made, it runs, or it is just ending.
  bool ready = false;  // It serves SessionControl.
  // How it ended, or is ending: recorded, or found out (KILLED, HOST_RESTARTED). Unknown for what an older version left
  // behind.
  std::optional<sessionpb::SessionEnd> end;
};

// A new session's directory. Nobody else takes or removes it while the lock is held.
struct SessionPlace {
  std::string directory;
  OwnedFd lock;
};

struct LaunchOptions {
  absl::Duration timeout;
  // Borrowed; -1: none. The memory image of a restore, and what config.disk_server needs.
  int ram_fd = -1;
  int disk_secret_fd = -1;
  // SessionPlace::lock, borrowed: still-session shares it. -1: taken here.
  int lock_fd = -1;
  // Where systemd can: apart from the process that launches it, which may be a shell's or a service's (session_autostart.h).
  bool own_unit = false;
  // What still-session is doing, when that changes and about every second.
  std::function<void(const std::string& step)> on_step = [](const std::string&) {};
};

class SessionRegistry {
 public:
  // `root`: the state directory; made on first use.
  explicit SessionRegistry(std::string root) : root_(std::move(root)) {}

  const std::string& root() const { return root_; }
  std::string Directory(const std::string& name) const;
  // Makes the directory of a new session. ALREADY_EXISTS says whether the one in the way lives.
  absl::StatusOr<SessionPlace> Create(const std::string& name) const;
  absl::StatusOr<std::vector<SessionEntry>> List() const;
  // The same, and of each that List() leaves out because it cannot be read, why: for whoever must not lose one.
  struct Listing {
    std::vector<SessionEntry> entries;
    std::map<std::string, absl::Status> unreadable;
  };
  absl::StatusOr<Listing> ListAll() const;
  // NOT_FOUND suggests a name, or lists those there are.
  absl::StatusOr<SessionEntry> Find(const std::string& name) const;
  // The whole name of the session that is meant by `name` or its beginning (base/name_match.h).
  absl::StatusOr<std::string> Resolve(const std::string& name) const;
  // Deletes an ended session's directory, restored disks included. FAILED_PRECONDITION while it lives; one that is just
  // ending is waited for.
  absl::Status Remove(const std::string& name) const;
  // NOT_FOUND: no such session. UNAVAILABLE: it has ended, or is not ready yet.
  absl::StatusOr<std::unique_ptr<sessionpb::SessionControl::Stub>> Connect(const std::string& name) const;

  // Ends a session by force and waits until its still-session is gone, so that nothing touches its directory any more.
  // UNAVAILABLE: it is not running. DEADLINE_EXCEEDED: it does not end.
  absl::Status End(const std::string& name, absl::Duration timeout) const;
  // Waits until no process works for it any more. OK when there is no such session.
  absl::Status AwaitGone(const std::string& name, absl::Duration timeout) const;

  // Starts still-session for a session's directory, in the background, and waits until it is ready (booted to its agent,
  // or restored and thawed) or has failed; its error is returned then. On any error, and when we are killed meanwhile,
  // no process of it is left. The program is looked up beside the running one, or in STILL_SESSION_PROGRAM.
  // A config without a machine id is one that is started from its own disks, and gets theirs (session/machine_id.h).
  absl::StatusOr<sessionpb::LaunchReport> Launch(const sessionpb::SessionConfig& config, LaunchOptions options) const;

 private:
  std::vector<std::string> Names() const;

  std::string root_;
};

// For still-session itself.
absl::StatusOr<sessionpb::SessionConfig> ReadSessionConfig(const std::string& directory);
absl::StatusOr<sessionpb::SessionStart> ReadSessionStart(const std::string& directory);
absl::Status WriteSessionStart(const std::string& directory, const sessionpb::SessionStart& start);
// Differs after each restart of this host.
std::string HostBootId();
absl::Status WriteSessionEnd(const std::string& directory, const sessionpb::SessionEnd& end);

}  // namespace still::session
