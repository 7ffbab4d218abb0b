#include "session/control/launch_report.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/clock.h"
#include "base/log.h"

namespace still::session {
namespace {

// Warnings are a few sentences; a console's end stands in an error.
constexpr size_t kMaxMessage = 64 << 10;
constexpr absl::Duration kTellAgain = absl::Seconds(1);
constexpr int kLookMs = 200;  // For Finish(), which joins the watcher when the launcher has its answer.

}  // namespace

absl::StatusOr<SocketPair> MakeReportSocket() {
  int fds[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) != 0) return ErrnoStatus(errno, "socketpair");
  return SocketPair{.first = OwnedFd(fds[0]), .second = OwnedFd(fds[1])};
}

LaunchReporter::~LaunchReporter() {
  finished_ = true;
  if (watcher_.joinable()) watcher_.join();
}

bool LaunchReporter::Send(const sessionpb::LaunchReport& message) {
  const std::string bytes = message.SerializeAsString();
  ssize_t sent;
  do {
    sent = ::send(socket_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
  } while (sent < 0 && errno == EINTR);
  if (sent < 0)
    LogWarning("nobody waits for this session any more", {{"error", ErrnoStatus(errno, "send").ToString()}});
  return sent >= 0;
}

void LaunchReporter::Step(const std::string& step) {
  if (!socket_.valid() || finished_) return;
  sessionpb::LaunchReport message;
  message.set_step(step);
  Send(message);  // Whether anybody still waits is the watcher's matter, and Finish()'s.
}

void LaunchReporter::Watch(std::function<void()> gone) {
  if (!socket_.valid()) return;
  watcher_ = std::thread([this, gone = std::move(gone)] {
    while (!finished_) {
      pollfd peer{.fd = socket_.get(), .events = POLLRDHUP, .revents = 0};
      if (::poll(&peer, 1, kLookMs) <= 0) continue;
      // The launcher goes as soon as it has the last message; that is no reason to end.
      if (finished_) return;
      LogWarning("whoever started this session is gone");
      gone();
      return;
    }
  });
}

bool LaunchReporter::Finish(const absl::StatusOr<sessionpb::LaunchReport>& ready) {
  if (!socket_.valid()) return true;
  finished_ = true;
  sessionpb::LaunchReport message = ready.ok() ? *ready : sessionpb::LaunchReport();
  message.clear_step();
  message.set_code(static_cast<int>(ready.status().code()));
  message.set_message(ready.ok() ? "ready" : std::string(ready.status().message()));
  const bool sent = Send(message);
  if (watcher_.joinable()) watcher_.join();
  socket_.Reset();
  return sent;
}

absl::StatusOr<sessionpb::LaunchReport> AwaitReport(int socket, absl::Duration timeout,
                                                    const std::function<void(const std::string& step)>& on_step) {
  const absl::Duration deadline = Clock::Real().Monotonic() + timeout;
  std::string step;
  for (;;) {
    const absl::Duration left = deadline - Clock::Real().Monotonic();
    absl::Status readable = WaitReadable(socket, std::clamp(left, absl::ZeroDuration(), kTellAgain), "still-session");
    if (absl::IsDeadlineExceeded(readable) && left > kTellAgain) {
      if (!step.empty()) on_step(step);
      continue;
    }
    STILL_RETURN_IF_ERROR(readable);
    std::string bytes(kMaxMessage, '\0');
    ssize_t got = ::recv(socket, bytes.data(), bytes.size(), 0);
    if (got < 0 && errno == EINTR) continue;
    sessionpb::LaunchReport message;
    if (got <= 0 || !message.ParseFromArray(bytes.data(), static_cast<int>(got))) {
      return absl::InternalError("still-session ended without a word");
    }
    if (message.step().empty()) {
      if (message.code() == 0) return message;
      return absl::Status(static_cast<absl::StatusCode>(message.code()), message.message());
    }
    step = message.step();
    on_step(step);
  }
}

}  // namespace still::session
