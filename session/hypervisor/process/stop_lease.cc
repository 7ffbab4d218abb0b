#include "session/hypervisor/process/stop_lease.h"

#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "base/unix_socket.h"

namespace still::session {
namespace {

// What the two say to each other, one byte a word; the lease's length follows kBegin.
enum Word : uint8_t { kBegin = 'b', kHolds = 'h', kRelease = 'e', kExpired = 'x' };
struct Message {
  uint8_t word;
  uint32_t length_ms;
};

// The keeper answers at once, unless the machine is in great trouble; then nothing should be stopped.
constexpr absl::Duration kAnswerDeadline = absl::Seconds(5);

// In the keeper: a fork of a program with threads, so nothing but system calls is allowed.
[[noreturn]] void Keep(int channel, int pidfd) {
  ::setsid();
  ::prctl(PR_SET_NAME, "still-lease");
  sigset_t all;
  ::sigfillset(&all);
  ::sigprocmask(SIG_SETMASK, &all, nullptr);
  // Above all the copy of the holder's end of the channel, which would hide its death; and no file of the holder may be
  // kept open by us.
  unsigned int low = static_cast<unsigned int>(std::min(channel, pidfd));
  unsigned int high = static_cast<unsigned int>(std::max(channel, pidfd));
  if (low > 0) ::syscall(SYS_close_range, 0u, low - 1, 0u);
  if (high > low + 1) ::syscall(SYS_close_range, low + 1, high - 1, 0u);
  ::syscall(SYS_close_range, high + 1, ~0u, 0u);

  bool promised = false;
  int wait_ms = -1;
  for (;;) {
    pollfd ready{.fd = channel, .events = POLLIN, .revents = 0};
    int polled = ::poll(&ready, 1, wait_ms);
    Message message{};
    ssize_t got = polled > 0 ? ::recv(channel, &message, sizeof message, 0) : 0;
    if (polled > 0 && got == sizeof message && message.word == kBegin) {
      promised = true;
      wait_ms = static_cast<int>(message.length_ms);
      Message answer{.word = kHolds, .length_ms = 0};
      ::send(channel, &answer, sizeof answer, MSG_NOSIGNAL);
      continue;
    }
    bool ended = polled > 0 && got == sizeof message && message.word == kRelease;
    // Over, or the holder is gone.
    if (promised && !ended) ::syscall(SYS_pidfd_send_signal, pidfd, SIGCONT, nullptr, 0u);
    Message answer{.word = static_cast<uint8_t>(ended ? kHolds : kExpired), .length_ms = 0};
    ::send(channel, &answer, sizeof answer, MSG_NOSIGNAL);
    ::_exit(0);
  }
}

absl::StatusOr<Word> Answer(int channel) {
  STILL_RETURN_IF_ERROR(WaitReadable(channel, kAnswerDeadline, "the keeper of the stop"));
  Message message{};
  if (::recv(channel, &message, sizeof message, 0) != sizeof message) {
    return absl::UnavailableError("the keeper of the stop is gone");
  }
  return static_cast<Word>(message.word);
}

}  // namespace

absl::StatusOr<StopLease> StopLease::Make(int pidfd) {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) return ErrnoStatus(errno, "socketpair");
  OwnedFd ours(ends[0]);
  OwnedFd theirs(ends[1]);
  pid_t keeper = ::fork();
  if (keeper < 0) return ErrnoStatus(errno, "fork");
  if (keeper == 0) Keep(theirs.get(), pidfd);
  return StopLease(keeper, std::move(ours));
}

StopLease::~StopLease() {
  if (keeper_ < 0) return;
  channel_.Reset();
  while (::waitpid(keeper_, nullptr, 0) < 0 && errno == EINTR) {
  }
}

absl::Status StopLease::Begin(absl::Duration length) {
  Message message{.word = kBegin, .length_ms = static_cast<uint32_t>(absl::ToInt64Milliseconds(length))};
  if (::send(channel_.get(), &message, sizeof message, MSG_NOSIGNAL) != sizeof message) {
    return ErrnoStatus(errno, "the keeper of the stop");
  }
  STILL_ASSIGN_OR_RETURN(Word answer, Answer(channel_.get()));
  return answer == kHolds ? absl::OkStatus() : absl::InternalError("the keeper of the stop does not hold");
}

absl::Status StopLease::End() {
  Message message{.word = kRelease, .length_ms = 0};
  // When it has ended by itself there is nobody to hear this, but its last word waits for us.
  (void)::send(channel_.get(), &message, sizeof message, MSG_NOSIGNAL);
  STILL_ASSIGN_OR_RETURN(Word answer, Answer(channel_.get()));
  if (answer == kHolds) return absl::OkStatus();
  return absl::AbortedError("the process was stopped for longer than its limit and has been continued");
}

}  // namespace still::session
