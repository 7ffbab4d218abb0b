#include "session/hypervisor/qemu/memory_relay.h"

#include <fcntl.h>
#include <linux/sockios.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/nonblocking.h"
#include "base/pipe.h"
#include "base/unix_socket.h"

namespace still::session {
namespace {

// What an unprivileged process may ask of a pipe (/proc/sys/fs/pipe-max-size).
constexpr int kPipeBytes = 1 << 20;
// As much as QEMU may be ahead of us; each switch between the two threads costs the guest's faults a wait.
constexpr int kSocketBytes = 4 << 20;
// The step in which waiting for the reader is counted. One that takes much longer is our own starvation.
constexpr absl::Duration kStallTick = absl::Milliseconds(20);

// Half of the time in which QEMU fills a buffer, at more than it ever writes: 4 bytes of buffer hold 2 bytes of pages.
constexpr double kBufferBytesPerSecond = 8e9;

// Larger than the system's limit where we may (CAP_NET_ADMIN), else up to it. Only a matter of speed.
void GrowSendBuffer(int fd) {
  if (::setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &kSocketBytes, sizeof kSocketBytes) == 0) return;
  (void)::setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &kSocketBytes, sizeof kSocketBytes);
}

absl::Duration GatheringTime(int fd) {
  int buffer = 0;
  socklen_t length = sizeof buffer;
  if (::getsockopt(fd, SOL_SOCKET, SO_SNDBUF, &buffer, &length) != 0) return absl::ZeroDuration();
  return absl::Seconds(buffer / kBufferBytesPerSecond);
}

}  // namespace

absl::StatusOr<std::unique_ptr<MemoryRelay>> MemoryRelay::Start(OwnedFd sink, Options options) {
  STILL_ASSIGN_OR_RETURN(Waker wake, Waker::Create());
  std::unique_ptr<MemoryRelay> relay(new MemoryRelay(options, std::move(wake)));
  STILL_ASSIGN_OR_RETURN(SocketPair pair, MakeSocketPair());
  relay->source_ = std::move(pair.first);
  relay->stream_ = std::move(pair.second);
  relay->sink_ = std::move(sink);
  STILL_ASSIGN_OR_RETURN(relay->pipe_, MakePipe());
  (void)::fcntl(relay->pipe_.write_end.get(), F_SETPIPE_SZ, kPipeBytes);  // The default 64 KiB work too.
  STILL_RETURN_IF_ERROR(SetNonBlocking(relay->stream_.get()));
  STILL_RETURN_IF_ERROR(SetNonBlocking(relay->sink_.get()));
  GrowSendBuffer(relay->source_.get());
  GrowSendBuffer(relay->sink_.get());
  relay->gathering_ = GatheringTime(relay->source_.get());
  relay->thread_ = std::thread([raw = relay.get()] { raw->Relay(); });
  return relay;
}

MemoryRelay::~MemoryRelay() {
  source_.Reset();
  Cancel();
  // Whatever still writes gets an error; the thread sees the end.
  ::shutdown(stream_.get(), SHUT_RDWR);
  if (thread_.joinable()) thread_.join();
}

void MemoryRelay::SetStallLimit(absl::Duration limit) {
  absl::MutexLock lock(&mutex_);
  stall_limit_ = limit;
  wake_.Wake();
}

void MemoryRelay::Cancel() {
  absl::MutexLock lock(&mutex_);
  cancelled_ = true;
  wake_.Wake();
}

absl::Status MemoryRelay::status() const {
  absl::MutexLock lock(&mutex_);
  return status_;
}

bool MemoryRelay::WaitForEnd(absl::Duration timeout) const {
  absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithTimeout(absl::Condition(&ended_), timeout);
}

void MemoryRelay::Relay() {
  // splice(2) into a socket whose reader is gone raises SIGPIPE in this thread.
  sigset_t pipe_signal;
  ::sigemptyset(&pipe_signal);
  ::sigaddset(&pipe_signal, SIGPIPE);
  ::pthread_sigmask(SIG_BLOCK, &pipe_signal, nullptr);
  Pump();
  ::shutdown(sink_.get(), SHUT_RDWR);
  if (!stream_ended_ && when_lost_ == WhenReaderIsLost::kReadOn) ReadOn();
  ::shutdown(stream_.get(), SHUT_RDWR);
  absl::MutexLock lock(&mutex_);
  ended_ = true;
}

void MemoryRelay::Pump() {
  while (!stream_ended_ || in_pipe_ > 0) {
    if (absl::Status moved = Move(); !moved.ok()) return LoseReader(moved);
  }
}

// One turn: what is there into the empty pipe, or what is in the pipe to the reader. An error is the reader's loss.
absl::Status MemoryRelay::Move() {
  absl::Duration limit;
  {
    absl::MutexLock lock(&mutex_);
    if (cancelled_) return absl::CancelledError("the capture was cancelled");
    limit = stall_limit_;
  }
  if (in_pipe_ == 0) {
    // The pipe is only filled when empty: how much more a partly filled one takes depends on how its pages are cut.
    ssize_t got =
        ::splice(stream_.get(), nullptr, pipe_.write_end.get(), nullptr, kPipeBytes, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
    if (got < 0 && errno == EAGAIN) {
      STILL_RETURN_IF_ERROR(AwaitOne(stream_.get(), POLLIN, absl::InfiniteDuration()));
      Clock::Real().Sleep(gathering_);
      return absl::OkStatus();
    }
    if (got < 0 && errno == EINTR) return absl::OkStatus();
    // An error here is the end of QEMU, which others report.
    stream_ended_ = got <= 0;
    in_pipe_ = static_cast<uint64_t>(std::max<ssize_t>(got, 0));
    bytes_read_ += in_pipe_;
    waited_ = absl::ZeroDuration();
  }
  if (in_pipe_ == 0) return absl::OkStatus();
  ssize_t put =
      ::splice(pipe_.read_end.get(), nullptr, sink_.get(), nullptr, in_pipe_, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
  if (put > 0) {
    in_pipe_ -= static_cast<uint64_t>(put);
    bytes_ += static_cast<uint64_t>(put);
    waited_ = absl::ZeroDuration();
    return absl::OkStatus();
  }
  if (errno == EINTR) return absl::OkStatus();
  if (errno != EAGAIN) {
    return absl::AbortedError(
        absl::StrCat("the reader of the memory stream is gone: ", ErrnoStatus(errno, "splice").message()));
  }
  if (waited_ < limit) {
    absl::Duration begun = Clock::Real().Monotonic();
    STILL_RETURN_IF_ERROR(AwaitOne(sink_.get(), POLLOUT, std::min(kStallTick, limit - waited_)));
    waited_ += std::min(Clock::Real().Monotonic() - begun, 2 * kStallTick);
    // poll(2) calls a UNIX socket writable when three quarters of it are empty (unix_writable), which a slow reader may
    // not reach within the limit: what it takes meanwhile counts.
    int queued = 0;
    if (::ioctl(sink_.get(), SIOCOUTQ, &queued) == 0 && std::exchange(queued_, queued) > queued) {
      waited_ = absl::ZeroDuration();
    }
    return absl::OkStatus();
  }
  return absl::DeadlineExceededError(
      absl::StrCat("the reader of the memory stream took nothing for ", absl::FormatDuration(limit)));
}

// Returns early when Cancel or SetStallLimit has something to say.
absl::Status MemoryRelay::AwaitOne(int fd, short events, absl::Duration timeout) {
  pollfd fds[2] = {{.fd = fd, .events = events, .revents = 0}, {.fd = wake_.fd(), .events = POLLIN, .revents = 0}};
  if (::poll(fds, 2, PollTimeout(timeout)) > 0 && fds[1].revents != 0) wake_.Clear();
  return absl::OkStatus();
}

void MemoryRelay::LoseReader(const absl::Status& why) {
  absl::MutexLock lock(&mutex_);
  status_ = why;
}

void MemoryRelay::ReadOn() {
  std::vector<char> scratch(kPipeBytes);
  for (;;) {
    ssize_t got = ::recv(stream_.get(), scratch.data(), scratch.size(), 0);
    if (got > 0) bytes_read_ += static_cast<uint64_t>(got);
    if (got > 0 || (got < 0 && errno == EINTR)) continue;
    if (got == 0 || errno != EAGAIN) return;
    // Without a limit: QEMU ends it, or its end or our destructor does.
    pollfd fds{.fd = stream_.get(), .events = POLLIN, .revents = 0};
    ::poll(&fds, 1, -1);
    Clock::Real().Sleep(gathering_);
  }
}

}  // namespace still::session
