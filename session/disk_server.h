// DiskServer: the program that serves a lazily restored session's disks over NBD, kept running as long as a disk needs
// it. It knows nothing of what is served: a command, a listening socket, and a secret that goes from hand to hand.
//
// The listening socket is ours. So a hypervisor that connects while the program is being started again waits in its
// queue instead of being refused, and no path is too long. Thread-safe.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/fd.h"
#include "base/process.h"
#include "base/status.h"
#include "base/waker.h"

namespace still::session {

class DiskServer {
 public:
  struct Options {
    std::vector<std::string> command;  // `--listen-fd N` and `--passphrase-fd N` are added.
    std::string socket_path;
    OwnedFd secret;  // Invalid: none is needed.
    absl::Duration start_deadline = absl::Seconds(60);
  };
  // Returns once it serves. When it ends before that: FAILED_PRECONDITION with its last words.
  static absl::StatusOr<std::unique_ptr<DiskServer>> Start(Options options);
  // Ends it.
  ~DiskServer();

  // Ends it and starts it again; returns once it serves. For when what it serves was away: it may hold descriptors of
  // what is no longer there. Errors as Start, and it goes on trying.
  absl::Status Restart();
  // Ends it until it is restarted: what it serves must be free for others (a repair, say). Returns without waiting.
  void Suspend();
  bool serving() const;
  // What it said last about a failure of its own, one line; empty when it said nothing since it was started.
  std::string last_error() const;
  // What it could not read for a client, and why: the rest of the newest line with "error: cannot read ". Kept, also over
  // restarts, until it is forgotten: a server that cannot even start says nothing of what is waited for.
  std::string unread() const;
  void ForgetUnread();

 private:
  enum class State { kStarting, kServing, kEnded };

  DiskServer(Options options, Waker wake) : options_(std::move(options)), wake_(std::move(wake)) {}
  absl::Status AwaitServing(uint64_t generation);
  // The keeper thread: starts the program (the kernel ends it with this thread), reads what it says, sees it end.
  void Keep();
  absl::StatusOr<ChildProcess> StartProgram(OwnedFd& stderr_read);
  void KeepOne();
  void Hear(absl::string_view text);
  void SetState(State state);

  const Options options_;
  OwnedFd listening_;
  const Waker wake_;
  mutable absl::Mutex mutex_;
  State state_ ABSL_GUARDED_BY(mutex_) = State::kStarting;
  uint64_t generation_ ABSL_GUARDED_BY(mutex_) = 0;  // Of the program that runs, or ran last.
  uint64_t wanted_ ABSL_GUARDED_BY(mutex_) = 1;      // The generation that is asked for.
  bool suspended_ ABSL_GUARDED_BY(mutex_) = false;
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;
  std::string partial_line_;  // Of the keeper.
  std::string last_error_ ABSL_GUARDED_BY(mutex_);
  std::string unread_ ABSL_GUARDED_BY(mutex_);
  std::thread keeper_;
};

}  // namespace still::session
