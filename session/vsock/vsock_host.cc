#include "session/vsock/vsock_host.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/random.h"
#include "session/vsock/preload_library.h"
#include "session/vsock/vsock_backends.h"

namespace still::session {

absl::Status FindVsock(VsockBackend backend) {
  absl::Status kernel = backend == VsockBackend::kUserspace ? absl::OkStatus() : FindKernelVsock();
  if (backend == VsockBackend::kKernel || (kernel.ok() && backend == VsockBackend::kAutomatic)) return kernel;
  absl::Status userspace = FindPreloadLibrary().status();
  if (userspace.ok() || kernel.ok()) return userspace;
  return absl::FailedPreconditionError(absl::StrCat(kernel.message(), "; nor the other way: ", userspace.message()));
}

absl::StatusOr<std::unique_ptr<VsockHost>> VsockHost::Create(const VsockOptions& options) {
  switch (options.backend) {
    case VsockBackend::kKernel:
      return CreateKernelVsock(options);
    case VsockBackend::kUserspace:
      return CreateUserspaceVsock(options);
    case VsockBackend::kAutomatic:
      break;
  }
  absl::StatusOr<std::unique_ptr<VsockHost>> kernel = CreateKernelVsock(options);
  // A port or CID that is taken is no obstacle in user space, where every VM has its own: so a restored VM, whose agent
  // knows only the port that it was saved with, can run beside its source.
  bool helped = absl::IsFailedPrecondition(kernel.status()) || absl::IsPermissionDenied(kernel.status()) ||
                absl::IsAlreadyExists(kernel.status());
  if (!helped) return kernel;
  absl::StatusOr<std::unique_ptr<VsockHost>> userspace = CreateUserspaceVsock(options);
  if (!userspace.ok() && absl::IsFailedPrecondition(userspace.status())) {
    return absl::FailedPreconditionError(
        absl::StrCat(kernel.status().message(), "; nor the other way: ", userspace.status().message()));
  }
  LogDebug("vsock in user space", {{"because", kernel.status().message()}});
  return userspace;
}

uint32_t RandomGuestCid() {
  constexpr uint32_t kFirst = 1u << 16;
  constexpr uint32_t kEnd = 1u << 31;
  return kFirst + static_cast<uint32_t>(RandomU64() % (kEnd - kFirst));
}

StoppableListener::StoppableListener(OwnedFd listening, Waker stop, std::string name)
    : listening_(std::move(listening)), stop_(std::move(stop)), name_(std::move(name)) {}

absl::StatusOr<StoppableListener> StoppableListener::Create(OwnedFd listening, std::string name) {
  STILL_ASSIGN_OR_RETURN(Waker stop, Waker::Create());
  return StoppableListener(std::move(listening), std::move(stop), std::move(name));
}

absl::StatusOr<OwnedFd> StoppableListener::Accept(absl::Duration timeout, sockaddr* address, socklen_t* length) {
  absl::Duration deadline = Clock::Real().Monotonic() + timeout;
  for (;;) {
    absl::Duration left = deadline - Clock::Real().Monotonic();
    pollfd fds[2] = {{.fd = stop_.fd(), .events = POLLIN, .revents = 0},
                     {.fd = listening_.get(), .events = POLLIN, .revents = 0}};
    int ready = ::poll(fds, 2, PollTimeout(left));
    if (ready < 0 && errno != EINTR) return ErrnoStatus(errno, absl::StrCat("poll ", name_));
    if (ready > 0 && fds[0].revents != 0) return absl::CancelledError(absl::StrCat(name_, ": shut down"));
    if (ready > 0) {
      OwnedFd fd(::accept4(listening_.get(), address, length, SOCK_CLOEXEC));
      if (fd.valid()) return fd;
      // The peer was gone again before we came.
      if (errno != ECONNABORTED && errno != EAGAIN && errno != EINTR) {
        return ErrnoStatus(errno, absl::StrCat("accept ", name_));
      }
    }
    if (ready == 0 && left <= absl::ZeroDuration()) {
      return absl::DeadlineExceededError(
          absl::StrCat(name_, ": the guest did not connect within ", absl::FormatDuration(timeout)));
    }
  }
}

void StoppableListener::Shutdown() { stop_.Wake(); }

}  // namespace still::session
