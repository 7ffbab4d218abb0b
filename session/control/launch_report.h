// How still-session tells whoever started it what it is doing and whether it became ready: LaunchReport messages on a
// socket of whole messages. All but the last have nothing but `step`; after the last one the socket ends.
//
// The socket is a life line too: when the launcher ends before the last message, however, the session must not go on.
// It may be half of something (a rollback, one of several), and nobody was told of it.
#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <thread>

#include "absl/time/time.h"
#include "base/fd.h"
#include "base/status.h"
#include "base/unix_socket.h"
#include "proto/aliases.h"
#include "proto/session.pb.h"

namespace still::session {

// Close-on-exec; `second` is for still-session.
absl::StatusOr<SocketPair> MakeReportSocket();

// still-session's end. Step() and Finish() are called by one thread.
class LaunchReporter {
 public:
  // Invalid: nobody waits.
  explicit LaunchReporter(OwnedFd socket) : socket_(std::move(socket)) {}
  ~LaunchReporter();
  LaunchReporter(const LaunchReporter&) = delete;
  LaunchReporter& operator=(const LaunchReporter&) = delete;

  // What it does next, for whoever waits.
  void Step(const std::string& step);
  // Calls `gone` once, from a thread of its own, when the launcher has ended before Finish().
  void Watch(std::function<void()> gone);
  // The last message. False: nobody waits any more. Later calls do nothing and give true.
  bool Finish(const absl::StatusOr<sessionpb::LaunchReport>& ready);

 private:
  bool Send(const sessionpb::LaunchReport& message);

  OwnedFd socket_;
  std::atomic<bool> finished_ = false;
  std::thread watcher_;
};

// The launcher's end: blocks until the last message. `on_step` is told the newest step when it comes and about every
// second. An error is still-session's own, DEADLINE_EXCEEDED, or INTERNAL: it ended without a word.
absl::StatusOr<sessionpb::LaunchReport> AwaitReport(int socket, absl::Duration timeout,
                                                    const std::function<void(const std::string& step)>& on_step);

}  // namespace still::session
