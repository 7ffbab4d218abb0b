#include "base/child_watch.h"

#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <thread>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/log.h"

namespace still {
namespace {

// A child that floods its output must not keep us from killing or reaping it.
constexpr int kMaxReadsInARow = 64;

// What is there to read now. False at the end of the stream, on an error, or when nobody wants more.
bool Drain(const ChildStream& stream) {
  char buffer[16384];
  for (int turns = 0; turns < kMaxReadsInARow; ++turns) {
    const ssize_t got = ::read(stream.fd, buffer, sizeof buffer);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return errno == EAGAIN;
    if (got == 0) return false;
    if (!stream.hear({buffer, static_cast<size_t>(got)})) return false;
  }
  return true;
}

void Kill(const ChildProcess& child, bool group) {
  // By group only while the child is not reaped: its number cannot belong to anybody else.
  if (group) ::kill(-child.pid(), SIGKILL);
  if (absl::Status killed = child.Kill(SIGKILL); !killed.ok()) {
    LogError("a process could not be killed", {{"error", killed.ToString()}});
  }
}

}  // namespace

absl::StatusOr<WatchedEnd> WatchChild(ChildProcess& child, const ChildWatchOptions& options) {
  enum { kExit, kWake, kStreams };
  std::vector<pollfd> fds = {{child.pidfd(), POLLIN, 0},
                             {options.waker == nullptr ? -1 : options.waker->fd(), POLLIN, 0}};
  for (const ChildStream& stream : options.streams) fds.push_back({stream.fd, POLLIN, 0});
  absl::Duration given_up = absl::InfiniteDuration();
  WatchedEnd end;
  while ((fds[kExit].revents & POLLIN) == 0) {
    const absl::Duration now = Clock::Real().Monotonic();
    const absl::Duration kill_at = end.killed ? absl::InfiniteDuration() : options.kill_at();
    if (now >= kill_at) {
      Kill(child, options.kill_group);
      end.killed = true;
      given_up = now + kKilledChildGrace;
      continue;
    }
    if (now >= given_up) {
      const pid_t pid = child.pid();
      child.Release();
      std::thread([pid] { ::waitpid(pid, nullptr, 0); }).detach();  // Reaps it, whenever it ends.
      return absl::DeadlineExceededError(absl::StrCat("process ", pid, " was killed and does not end"));
    }
    if (::poll(fds.data(), fds.size(), PollTimeout(std::min(kill_at, given_up) - now)) < 0) {
      if (errno != EINTR) return ErrnoStatus(errno, "poll");
      for (pollfd& fd : fds) fd.revents = 0;
      continue;
    }
    if (fds[kWake].revents != 0) options.waker->Clear();
    for (size_t i = 0; i < options.streams.size(); ++i) {
      if (fds[kStreams + i].revents != 0 && !Drain(options.streams[i])) fds[kStreams + i].fd = -1;
    }
  }
  // What it said last.
  for (size_t i = 0; i < options.streams.size(); ++i) {
    if (fds[kStreams + i].fd >= 0) Drain(options.streams[i]);
  }
  STILL_ASSIGN_OR_RETURN(end.exit, child.Wait(absl::ZeroDuration()));
  return end;
}

}  // namespace still
