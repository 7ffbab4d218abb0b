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

absl::Status NotPrivilegedError() {
  return absl::PermissionDeniedError(
      "a program of the guest dialled from an unprivileged port: it is not root's, or an older still-agent; update "
      "that with `still agent install` or the package stillpoint-agent");
}

StoppableListener::StoppableListener(std::vector<OwnedFd> listening, Waker stop, std::string name)
    : listening_(std::move(listening)), stop_(std::move(stop)), name_(std::move(name)) {}

absl::StatusOr<StoppableListener> StoppableListener::Create(std::vector<OwnedFd> listening, std::string name) {
  STILL_ASSIGN_OR_RETURN(Waker stop, Waker::Create());
  return StoppableListener(std::move(listening), std::move(stop), std::move(name));
}

absl::StatusOr<StoppableListener::Accepted> StoppableListener::Accept(absl::Duration timeout) {
  absl::Duration deadline = Clock::Real().Monotonic() + timeout;
  for (;;) {
    absl::Duration left = deadline - Clock::Real().Monotonic();
    std::vector<pollfd> fds = {{.fd = stop_.fd(), .events = POLLIN, .revents = 0}};
    for (const OwnedFd& listening : listening_) fds.push_back({.fd = listening.get(), .events = POLLIN, .revents = 0});
    int ready = ::poll(fds.data(), fds.size(), PollTimeout(left));
    if (ready < 0 && errno != EINTR) return ErrnoStatus(errno, absl::StrCat("poll ", name_));
    if (ready > 0 && fds[0].revents != 0) return absl::CancelledError(absl::StrCat(name_, ": shut down"));
    for (size_t i = 0; ready > 0 && i < listening_.size(); ++i) {
      if (fds[i + 1].revents == 0) continue;
      Accepted accepted;
      accepted.listener = i;
      socklen_t length = sizeof accepted.peer;
      accepted.fd =
          OwnedFd(::accept4(listening_[i].get(), reinterpret_cast<sockaddr*>(&accepted.peer), &length, SOCK_CLOEXEC));
      if (accepted.fd.valid()) return accepted;
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
