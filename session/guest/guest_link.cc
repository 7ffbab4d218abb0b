#include "session/guest/guest_link.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/log.h"

namespace still::session {
namespace {

// From connect to the answer of Init; under emulation a first call of the agent takes 0.3 s.
constexpr absl::Duration kInitTimeout = absl::Seconds(10);
// A live agent answers a Ping in milliseconds, also while frozen; one that does not is as good as gone.
constexpr absl::Duration kPingTimeout = absl::Seconds(2);
// It goes into every snapshot; ours have six.
constexpr size_t kMaxVersionBytes = 64;

}  // namespace

GuestLink::GuestLink(std::unique_ptr<VsockHost> vsock, GuestHello hello)
    : vsock_(std::move(vsock)), hello_(std::move(hello)), thread_([this] { AcceptLoop(); }) {}

GuestLink::~GuestLink() {
  Shutdown();
  thread_.join();
}

void GuestLink::Shutdown() {
  vsock_->Shutdown();
  absl::MutexLock lock(&mutex_);
  shut_down_ = true;
  client_.reset();
}

void GuestLink::AcceptLoop() {
  for (;;) {
    absl::StatusOr<OwnedFd> connection = vsock_->Accept(absl::InfiniteDuration());
    if (absl::IsCancelled(connection.status())) return;
    if (!connection.ok()) {
      LogWarning("guest connection not accepted", {{"error", connection.status().ToString()}});
      Clock::Real().Sleep(absl::Milliseconds(100));  // Whatever it is (descriptors, memory), do not spin on it.
      continue;
    }
    absl::StatusOr<std::unique_ptr<GuestClient>> client =
        GuestClient::Connect(*std::move(connection), hello_, kInitTimeout);
    if (!client.ok()) {
      LogWarning("guest agent did not say hello", {{"error", client.status().ToString()}});
      continue;
    }
    LogInfo("guest agent connected", {{"version", (*client)->init().agent_version()}});
    absl::MutexLock lock(&mutex_);
    if (shut_down_) return;
    client_ = *std::move(client);
    agent_version_ = client_->init().agent_version().substr(0, kMaxVersionBytes);
    clock_source_ = client_->init().clock_source().substr(0, kMaxVersionBytes);
    ++connections_;
  }
}

absl::StatusOr<std::shared_ptr<GuestClient>> GuestLink::Client(absl::Duration timeout) {
  const absl::Duration deadline = Clock::Real().Monotonic() + timeout;
  uint64_t seen = 0;
  for (;;) {
    std::shared_ptr<GuestClient> client;
    absl::Duration left = deadline - Clock::Real().Monotonic();
    {
      absl::MutexLock lock(&mutex_);
      auto newer = [this, seen]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return connections_ > seen || shut_down_; };
      if (!mutex_.AwaitWithTimeout(absl::Condition(&newer), std::max(absl::ZeroDuration(), left))) {
        return absl::UnavailableError(
            absl::StrCat("no guest agent answered within ", absl::FormatDuration(timeout),
                         "; is still-agent running in the guest and does it dial the session's vsock port?"));
      }
      if (shut_down_) return absl::UnavailableError("the session has ended");
      client = client_;
      seen = connections_;
    }
    left = deadline - Clock::Real().Monotonic();
    if (client->Ping(std::clamp(left, absl::Milliseconds(100), kPingTimeout)).ok()) return client;
  }
}

void GuestLink::GuestRestarted() {
  std::shared_ptr<GuestClient> client;
  {
    absl::MutexLock lock(&mutex_);
    ++restarts_;
    client = client_;
  }
  if (client != nullptr) client->Disconnect();
}

uint64_t GuestLink::restarts() const {
  absl::MutexLock lock(&mutex_);
  return restarts_;
}

bool GuestLink::ever_connected() const {
  absl::MutexLock lock(&mutex_);
  return connections_ > 0;
}

std::string GuestLink::agent_version() const {
  absl::MutexLock lock(&mutex_);
  return agent_version_;
}

std::string GuestLink::clock_source() const {
  absl::MutexLock lock(&mutex_);
  return clock_source_;
}

}  // namespace still::session
