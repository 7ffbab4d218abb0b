#include "session/hypervisor/qemu/nbd_relay.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/nonblocking.h"
#include "base/pipe.h"
#include "base/unix_socket.h"

namespace still::session {
namespace {

// What an unprivileged process may ask of a pipe (/proc/sys/fs/pipe-max-size); requests are 28 bytes each.
constexpr int kAnswerPipeBytes = 1 << 20;
constexpr size_t kMoveBytes = 1 << 20;
constexpr size_t kHoldBytes = 256 << 10;  // As much is read at once of what has to be held.
// So long a drain in QEMU may wait for a client. A reader that keeps up empties the pipe more often.
constexpr absl::Duration kPatience = absl::Milliseconds(100);

ssize_t Splice(int from, int to, size_t size) {
  ssize_t moved;
  do {
    moved = ::splice(from, nullptr, to, nullptr, size, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
  } while (moved < 0 && errno == EINTR);
  return moved;
}

}  // namespace

absl::StatusOr<std::unique_ptr<NbdRelay>> NbdRelay::Start(Options options) {
  STILL_ASSIGN_OR_RETURN(Waker stop, Waker::Create());
  std::unique_ptr<NbdRelay> relay(new NbdRelay(std::move(options), std::move(stop)));
  STILL_ASSIGN_OR_RETURN(relay->listening_, ListenUnix(relay->options_.path, kMaxClients));
  STILL_RETURN_IF_ERROR(SetNonBlocking(relay->listening_.get()));
  relay->thread_ = std::thread([raw = relay.get()] { raw->Relay(); });
  return relay;
}

NbdRelay::~NbdRelay() {
  if (thread_.joinable()) {
    stop_.Wake();
    thread_.join();
  }
  if (listening_.valid()) RemoveFile(options_.path).IgnoreError();
}

absl::Status NbdRelay::status() const {
  absl::MutexLock lock(&mutex_);
  return status_;
}

void NbdRelay::Relay() {
  // splice(2) into a socket whose reader is gone raises SIGPIPE in this thread.
  sigset_t pipe_signal;
  ::sigemptyset(&pipe_signal);
  ::sigaddset(&pipe_signal, SIGPIPE);
  ::pthread_sigmask(SIG_BLOCK, &pipe_signal, nullptr);
  for (;;) {
    Await();
    if (stop_.Clear()) break;
    std::erase_if(connections_, [this](const auto& connection) { return !Advance(*connection); });
    AcceptOne();
  }
  connections_.clear();
}

void NbdRelay::Await() const {
  std::vector<pollfd> fds = {{.fd = stop_.fd(), .events = POLLIN, .revents = 0}};
  const bool room = connections_.size() < kMaxClients;
  if (room) fds.push_back({.fd = listening_.get(), .events = POLLIN, .revents = 0});
  absl::Duration until = absl::InfiniteDuration();
  const absl::Duration now = Clock::Real().Monotonic();
  for (const auto& connection : connections_) {
    for (const Flow* flow : {&connection->requests, &connection->answers}) {
      if (flow->empty()) {
        fds.push_back({.fd = flow->from, .events = POLLIN, .revents = 0});
      } else {
        fds.push_back({.fd = flow->to, .events = POLLOUT, .revents = 0});
      }
    }
    const Flow& answers = connection->answers;
    if (answers.empty()) continue;
    until = std::min(until, answers.moved_at + options_.stall_limit);
    if (answers.ended) continue;
    if (now < answers.emptied_at + kPatience) {
      until = std::min(until, answers.emptied_at + kPatience);
    } else {
      fds.push_back({.fd = answers.from, .events = POLLIN, .revents = 0});
    }
  }
  ::poll(fds.data(), fds.size(), PollTimeout(until - now));  // Whatever it says: the descriptors are asked one by one.
}

void NbdRelay::AcceptOne() {
  if (connections_.size() >= kMaxClients) return;
  OwnedFd client(::accept4(listening_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!client.valid()) return;
  auto connection = Connect(std::move(client));
  if (connection.ok()) {
    connections_.push_back(*std::move(connection));
  } else {
    LogWarning("a reader of the disks is turned away", {{"error", connection.status().ToString()}});
  }
}

absl::StatusOr<std::unique_ptr<NbdRelay::Connection>> NbdRelay::Connect(OwnedFd client) const {
  auto connection = std::make_unique<Connection>();
  connection->client = std::move(client);
  STILL_ASSIGN_OR_RETURN(connection->server, ConnectUnix(options_.server_path));
  STILL_RETURN_IF_ERROR(SetNonBlocking(connection->server.get()));
  const int client_fd = connection->client.get();
  const int server_fd = connection->server.get();
  connection->requests = {.from = client_fd, .to = server_fd};
  connection->answers = {.from = server_fd, .to = client_fd};
  for (Flow* flow : {&connection->requests, &connection->answers}) {
    STILL_ASSIGN_OR_RETURN(flow->pipe, MakePipe());
    flow->moved_at = flow->emptied_at = Clock::Real().Monotonic();
  }
  // The default 64 KiB work too.
  (void)::fcntl(connection->answers.pipe.write_end.get(), F_SETPIPE_SZ, kAnswerPipeBytes);
  return connection;
}

bool NbdRelay::Advance(Connection& connection) {
  Flow& answers = connection.answers;
  if (!Move(connection.requests) || !Move(answers)) return false;
  Hold(answers);
  // A client that has gone needs no answers; a server that has gone may have said why.
  if (connection.requests.ended || (answers.ended && answers.empty())) return false;
  return !Hangs(answers);
}

bool NbdRelay::Hangs(const Flow& answers) {
  absl::Status why;
  if (answers.held.size() - answers.held_begin > kMaxHeldBytes) {
    why = absl::ResourceExhaustedError(absl::StrCat("a reader of the disks asked for more than ", kMaxHeldBytes >> 20,
                                                    " MiB at a time, did not take it, and was cut off"));
  } else if (!answers.empty() && Clock::Real().Monotonic() - answers.moved_at >= options_.stall_limit) {
    why = absl::DeadlineExceededError(absl::StrCat("a reader of the disks took nothing for ",
                                                   absl::FormatDuration(options_.stall_limit), " and was cut off"));
  } else {
    return false;
  }
  LogWarning("a reader of the disks hangs", {{"error", why.ToString()}});
  absl::MutexLock lock(&mutex_);
  status_.Update(why);
  return true;
}

bool NbdRelay::Move(Flow& flow) {
  // The pipe is only filled when empty: how much more a partly filled one takes depends on how its pages are cut.
  if (flow.empty() && !flow.ended) {
    ssize_t got = Splice(flow.from, flow.pipe.write_end.get(), kMoveBytes);
    if (got == 0 || (got < 0 && errno != EAGAIN)) flow.ended = true;
    if (got > 0) flow.in_pipe = static_cast<size_t>(got);
    flow.moved_at = flow.emptied_at = Clock::Real().Monotonic();
  }
  if (flow.in_pipe > 0) {
    ssize_t put = Splice(flow.pipe.read_end.get(), flow.to, flow.in_pipe);
    if (put < 0) return errno == EAGAIN;
    flow.in_pipe -= static_cast<size_t>(put);
    flow.moved_at = Clock::Real().Monotonic();
  }
  return flow.in_pipe > 0 || MoveHeld(flow);
}

bool NbdRelay::MoveHeld(Flow& flow) {
  if (flow.held.empty()) return true;
  const size_t left = flow.held.size() - flow.held_begin;
  ssize_t put = ::send(flow.to, flow.held.data() + flow.held_begin, left, MSG_DONTWAIT | MSG_NOSIGNAL);
  if (put < 0) return errno == EAGAIN || errno == EINTR;
  flow.held_begin += static_cast<size_t>(put);
  flow.moved_at = Clock::Real().Monotonic();
  // Given back in large pieces, so that a taker that never catches up costs a copy or two a byte.
  if (flow.held_begin * 2 >= flow.held.size()) {
    flow.held.erase(0, flow.held_begin);
    flow.held_begin = 0;
  }
  return true;
}

void NbdRelay::Hold(Flow& flow) {
  if (flow.empty() || Clock::Real().Monotonic() - flow.emptied_at < kPatience) return;
  while (!flow.ended && flow.held.size() - flow.held_begin <= kMaxHeldBytes) {
    const size_t size = flow.held.size();
    flow.held.resize(size + kHoldBytes);
    ssize_t got = ::recv(flow.from, flow.held.data() + size, kHoldBytes, MSG_DONTWAIT);
    const bool nothing_yet = got < 0 && (errno == EAGAIN || errno == EINTR);
    flow.held.resize(size + static_cast<size_t>(std::max<ssize_t>(got, 0)));
    if (nothing_yet) return;
    flow.ended = got <= 0;
  }
}

}  // namespace still::session
