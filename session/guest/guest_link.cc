#include "session/guest/guest_link.h"

#include <sys/socket.h>

#include <algorithm>
#include <iterator>
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
constexpr absl::Duration kPowerOffTimeout = absl::Seconds(10);
constexpr absl::Duration kAskAgain = absl::Milliseconds(200);
// Of handshakes, with those that were given up and whose threads are about to end.
constexpr size_t kMaxThreads = 4 * GuestLink::kMaxHandshakes;

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

bool GuestLink::ended() const {
  absl::MutexLock lock(&mutex_);
  return shut_down_;
}

absl::Status GuestLink::PowerOff(absl::Duration timeout, const std::function<bool(absl::Duration)>& vm_ended) {
  const absl::Duration deadline = Clock::Real().Monotonic() + timeout;
  for (;;) {
    const absl::Duration left = deadline - Clock::Real().Monotonic();
    STILL_ASSIGN_OR_RETURN(std::shared_ptr<GuestClient> client, Client(std::min(left, kPowerOffTimeout)));
    absl::Status asked = client->Shutdown(kPowerOffTimeout);
    if (!absl::IsFailedPrecondition(asked) || Clock::Real().Monotonic() + kAskAgain >= deadline) return asked;
    if (vm_ended(kAskAgain)) return absl::OkStatus();
  }
}

void GuestLink::AcceptLoop() {
  for (;;) {
    absl::StatusOr<OwnedFd> connection = vsock_->Accept(absl::InfiniteDuration());
    if (absl::IsCancelled(connection.status())) break;
    if (connection.ok()) {
      BeginHandshake(*std::move(connection));
    } else if (absl::IsPermissionDenied(connection.status())) {
      Refused(connection.status(), unprivileged_lines_);
    } else {
      LogWarning("guest connection not accepted", {{"error", connection.status().ToString()}});
      Clock::Real().Sleep(absl::Milliseconds(100));  // Whatever it is (descriptors, memory), do not spin on it.
    }
  }
  ReapHandshakes(/*all=*/true);
}

void GuestLink::Refused(const absl::Status& why, LogLimiter& lines) {
  if (auto left_out = lines.Admit(); left_out.has_value()) {
    LogWarning("turned away who dialled as the guest's agent", {{"why", why.message()}, {"left_out", *left_out}});
  }
  absl::MutexLock lock(&mutex_);
  refused_ = std::string(why.message());
}

void GuestLink::BeginHandshake(OwnedFd connection) {
  ReapHandshakes(/*all=*/false);
  absl::StatusOr<OwnedFd> duplicate = connection.Duplicate();
  if (!duplicate.ok()) return;  // Out of descriptors; the agent dials again.
  absl::MutexLock lock(&mutex_);
  int waiting = 0;
  Handshake* oldest = nullptr;
  for (Handshake& handshake : handshakes_) {
    if (handshake.done || handshake.given_up) continue;
    if (oldest == nullptr) oldest = &handshake;
    ++waiting;
  }
  if (handshakes_.size() >= kMaxThreads) return;
  if (waiting >= kMaxHandshakes) {
    ::shutdown(oldest->connection.get(), SHUT_RDWR);
    oldest->given_up = true;
  }
  auto handshake = handshakes_.emplace(handshakes_.end());
  handshake->connection = *std::move(duplicate);
  handshake->thread =
      std::thread([this, handshake, fd = std::move(connection)]() mutable { Greet(std::move(fd), handshake); });
}

void GuestLink::ReapHandshakes(bool all) {
  std::list<Handshake> ended;
  {
    absl::MutexLock lock(&mutex_);
    for (auto it = handshakes_.begin(); it != handshakes_.end();) {
      auto next = std::next(it);
      if (all) ::shutdown(it->connection.get(), SHUT_RDWR);
      if (all || it->done) ended.splice(ended.end(), handshakes_, it);
      it = next;
    }
  }
  for (Handshake& handshake : ended) handshake.thread.join();
}

void GuestLink::Greet(OwnedFd connection, std::list<Handshake>::iterator handshake) {
  absl::StatusOr<std::unique_ptr<GuestClient>> client =
      GuestClient::Connect(std::move(connection), hello_, kInitTimeout);
  if (client.ok()) {
    Offer(*std::move(client));
  } else if (auto left_out = handshake_lines_.Admit(); left_out.has_value()) {
    LogWarning("guest agent did not say hello", {{"error", client.status().ToString()}, {"left_out", *left_out}});
  }
  absl::MutexLock lock(&mutex_);
  handshake->done = true;
}

void GuestLink::Offer(std::shared_ptr<GuestClient> client) {
  absl::MutexLock one_at_a_time(&offer_mutex_);
  std::shared_ptr<GuestClient> present;
  {
    absl::MutexLock lock(&mutex_);
    present = client_;
  }
  if (present != nullptr && present->Ping(kPingTimeout).ok()) {
    Refused(absl::AlreadyExistsError("the guest has a connected agent, and it answers"), second_agent_lines_);
    return;
  }
  LogInfo("guest agent connected", {{"version", client->init().agent_version()}});
  absl::MutexLock lock(&mutex_);
  if (shut_down_) return;
  agent_version_ = client->init().agent_version();
  clock_source_ = client->init().clock_source();
  client_ = std::move(client);
  refused_.clear();
  ++connections_;
}

absl::StatusOr<std::shared_ptr<GuestClient>> GuestLink::Client(absl::Duration timeout) {
  const absl::Duration deadline = Clock::Real().Monotonic() + timeout;
  uint64_t seen = 0;
  absl::Status ping;
  for (;;) {
    std::shared_ptr<GuestClient> client;
    absl::Duration left = deadline - Clock::Real().Monotonic();
    {
      absl::MutexLock lock(&mutex_);
      auto newer = [this, seen]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return connections_ > seen || shut_down_; };
      if (!mutex_.AwaitWithTimeout(absl::Condition(&newer), std::max(absl::ZeroDuration(), left))) {
        // Who else was turned away explains nothing where ours is connected.
        absl::string_view why = refused_;
        if (absl::IsDeadlineExceeded(ping)) why = "it is connected: the guest hangs, or is very slow";
        if (why.empty()) why = "is still-agent running in the guest and does it dial the session's vsock port?";
        return absl::UnavailableError(
            absl::StrCat("no guest agent answered within ", absl::FormatDuration(timeout), "; ", why));
      }
      if (shut_down_) return absl::UnavailableError("the session has ended");
      client = client_;
      seen = connections_;
    }
    left = deadline - Clock::Real().Monotonic();
    ping = client->Ping(std::clamp(left, absl::Milliseconds(100), kPingTimeout));
    if (ping.ok()) return client;
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

std::string GuestLink::refused() const {
  absl::MutexLock lock(&mutex_);
  return refused_;
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
