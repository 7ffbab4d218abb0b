#include "session/memory/sink.h"

#include <linux/sockios.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/nonblocking.h"
#include "base/waker.h"

namespace still::session {
namespace {

constexpr int kSocketBytes = 4 << 20;
// The step in which waiting is counted. One that takes much longer is our own starvation.
constexpr absl::Duration kStallTick = absl::Milliseconds(20);

}  // namespace

absl::StatusOr<Sink> Sink::Create(OwnedFd socket, absl::Duration stall_limit, const std::atomic<bool>& cancelled) {
  STILL_RETURN_IF_ERROR(SetNonBlocking(socket.get()));
  // Beyond the system's limit where we may (CAP_NET_ADMIN). Only a matter of speed.
  if (::setsockopt(socket.get(), SOL_SOCKET, SO_SNDBUFFORCE, &kSocketBytes, sizeof kSocketBytes) != 0) {
    (void)::setsockopt(socket.get(), SOL_SOCKET, SO_SNDBUF, &kSocketBytes, sizeof kSocketBytes);
  }
  return Sink(std::move(socket), stall_limit, cancelled);
}

absl::Status Sink::WriteHeader(uint64_t memory_bytes, bool increment) {
  PageStreamHeader header{.memory_bytes = memory_bytes, .flags = increment ? uint64_t{kIncrement} : 0};
  std::memcpy(header.magic, kPageStreamMagic, kPageStreamMagicBytes);
  return Write(&header, sizeof header, nullptr, 0);
}

absl::Status Sink::WriteRecord(PageRecord kind, uint64_t offset, const char* bytes, uint32_t size) {
  const PageRecordHeader header{.kind = static_cast<uint32_t>(kind), .bytes = size, .offset = offset};
  return Write(&header, sizeof header, bytes, size);
}

absl::Status Sink::Write(const void* head, size_t head_size, const char* bytes, size_t size) {
  absl::Duration waited;
  for (size_t done = 0; done < head_size + size;) {
    iovec parts[2];
    int count = 0;
    if (done < head_size) {
      parts[count++] = {.iov_base = const_cast<char*>(static_cast<const char*>(head)) + done,
                        .iov_len = head_size - done};
    }
    const size_t of_bytes = done < head_size ? 0 : done - head_size;
    if (of_bytes < size) {
      parts[count++] = {.iov_base = const_cast<char*>(bytes) + of_bytes, .iov_len = size - of_bytes};
    }
    msghdr message{};
    message.msg_iov = parts;
    message.msg_iovlen = static_cast<size_t>(count);
    const ssize_t put = ::sendmsg(socket_.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (put > 0) {
      done += static_cast<size_t>(put);
      bytes_ += static_cast<uint64_t>(put);
      waited = absl::ZeroDuration();
      continue;
    }
    if (errno == EINTR) continue;
    if (errno != EAGAIN) {
      return absl::AbortedError(
          absl::StrCat("the reader of the memory stream is gone: ", ErrnoStatus(errno, "send").message()));
    }
    STILL_RETURN_IF_ERROR(AwaitReader(waited));
  }
  return absl::OkStatus();
}

absl::Status Sink::AwaitReader(absl::Duration& waited) {
  if (*cancelled_) return absl::CancelledError("the capture was cancelled");
  if (waited >= stall_limit_) {
    return absl::DeadlineExceededError(
        absl::StrCat("the reader of the memory stream took nothing for ", absl::FormatDuration(stall_limit_)));
  }
  const absl::Duration begun = Clock::Real().Monotonic();
  pollfd fd{.fd = socket_.get(), .events = POLLOUT, .revents = 0};
  (void)::poll(&fd, 1, PollTimeout(std::min(kStallTick, stall_limit_ - waited)));
  waited += std::min(Clock::Real().Monotonic() - begun, 2 * kStallTick);
  // poll(2) calls a UNIX socket writable when three quarters of it are empty (unix_writable), which a slow reader may not
  // reach within the limit: what it takes meanwhile counts.
  int queued = 0;
  if (::ioctl(socket_.get(), SIOCOUTQ, &queued) == 0 && std::exchange(queued_, queued) > queued) {
    waited = absl::ZeroDuration();
  }
  return absl::OkStatus();
}

}  // namespace still::session
