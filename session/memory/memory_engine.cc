#include "session/memory/memory_engine.h"

#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <new>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/find_sibling.h"
#include "base/log.h"
#include "session/memory/engine_protocol.h"

namespace still::session {
namespace {

constexpr absl::Duration kWatchTick = absl::Milliseconds(10);
// How long somebody may wait for an engine that does nothing, counted in ticks in which we got the processor ourselves.
constexpr absl::Duration kLongestWait = absl::Milliseconds(200);
// And where nobody waits.
constexpr absl::Duration kLongestStandstill = absl::Seconds(10);
constexpr absl::Duration kEndGrace = absl::Seconds(5);

bool WritesWait(int userfaultfd) {
  pollfd fd{.fd = userfaultfd, .events = POLLIN, .revents = 0};
  return ::poll(&fd, 1, 0) > 0 && (fd.revents & POLLIN) != 0;
}

struct SharedBoard {
  OwnedFd fd;
  EngineBoard* board = nullptr;
};

absl::StatusOr<SharedBoard> MakeBoard() {
  SharedBoard shared;
  shared.fd = OwnedFd(::memfd_create("still-memory-board", MFD_CLOEXEC));
  if (!shared.fd.valid() || ::ftruncate(shared.fd.get(), sizeof(EngineBoard)) != 0) {
    return ErrnoStatus(errno, "memory engine's board");
  }
  void* at = ::mmap(nullptr, sizeof(EngineBoard), PROT_READ | PROT_WRITE, MAP_SHARED, shared.fd.get(), 0);
  if (at == MAP_FAILED) return ErrnoStatus(errno, "memory engine's board");
  shared.board = new (at) EngineBoard;
  return shared;
}

}  // namespace

absl::StatusOr<std::string> FindMemoryEngine() { return FindSibling("still-memory", "STILL_MEMORY_PROGRAM"); }

MemoryEngine::MemoryEngine(const Options& options, Waker failed, Waker stop)
    : protection_(options.userfaultfd, options.range.address, options.range.bytes),
      failed_(std::move(failed)),
      stop_(std::move(stop)) {}

absl::StatusOr<std::unique_ptr<MemoryEngine>> MemoryEngine::Start(const Options& options) {
  STILL_ASSIGN_OR_RETURN(Waker failed, Waker::Create());
  STILL_ASSIGN_OR_RETURN(Waker stop, Waker::Create());
  std::unique_ptr<MemoryEngine> engine(new MemoryEngine(options, std::move(failed), std::move(stop)));
  STILL_ASSIGN_OR_RETURN(SharedBoard shared, MakeBoard());
  engine->board_ = shared.board;
  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) return ErrnoStatus(errno, "socketpair");
  engine->socket_ = OwnedFd(pair[0]);
  OwnedFd other(pair[1]);
  ProcessOptions process{
      .argv = {options.program, absl::StrCat(kEngineProtocol), absl::StrCat(other.get()),
               absl::StrCat(options.userfaultfd), absl::StrCat(shared.fd.get()), absl::StrCat(options.range.pid),
               absl::StrCat(options.range.address), absl::StrCat(options.range.bytes),
               absl::StrCat(absl::ToInt64Milliseconds(options.saver.stall_limit)),
               absl::StrCat(options.saver.max_waiting_bytes), absl::StrCat(options.saver.leave_out)},
      .inherited_fds = {other.get(), options.userfaultfd, shared.fd.get()},
      .end_with_parent = true};
  engine->watchdog_ = std::thread([raw = engine.get(), &process] { raw->Watch(process); });
  absl::MutexLock lock(&engine->mutex_);
  engine->mutex_.Await(absl::Condition(&engine->started_));
  STILL_RETURN_IF_ERROR(engine->status_);
  return engine;
}

void MemoryEngine::End() {
  Cancel();
  socket_.Reset();  // The process ends.
  stop_.Wake();
  if (watchdog_.joinable()) watchdog_.join();
}

MemoryEngine::~MemoryEngine() {
  End();
  if (board_ != nullptr) ::munmap(board_, sizeof *board_);
}

void MemoryEngine::Watch(ProcessOptions process) {
  absl::StatusOr<ChildProcess> child = ChildProcess::Start(process);
  {
    absl::MutexLock lock(&mutex_);
    if (child.ok()) {
      pid_ = child->pid();
    } else {
      status_ = child.status();
    }
    started_ = true;  // `process` is not ours any more.
  }
  if (!child.ok()) return;
  const absl::Status ended = WatchUntilEnd(*child);
  if (!ended.ok()) Fail(ended);
  (void)child->Kill(SIGKILL);
  // It has done so itself, unless it was killed. Whoever still holds the descriptor (we do) keeps the memory protected.
  if (absl::Status free = protection_.Unregister(); !free.ok()) {
    LogError("the machine's memory could not be given free", {{"error", free.ToString()}});
  }
  (void)child->Wait(kEndGrace);
}

absl::Status MemoryEngine::WatchUntilEnd(ChildProcess& child) {
  uint64_t beat = 0;
  absl::Duration still;        // Since it moved last.
  absl::Duration guest_waits;  // Of that, while somebody waited.
  absl::Duration end = absl::InfiniteDuration();
  for (absl::Duration before = Clock::Real().Monotonic();;) {
    const bool ending = end != absl::InfiniteDuration();
    pollfd fds[] = {{.fd = child.pidfd(), .events = POLLIN, .revents = 0},
                    {.fd = ending ? -1 : stop_.fd(), .events = POLLIN, .revents = 0}};
    (void)::poll(fds, 2, PollTimeout(kWatchTick));
    const absl::Duration now = Clock::Real().Monotonic();
    if (fds[0].revents != 0) {
      return ending ? absl::OkStatus() : absl::AbortedError("the memory engine has ended; take the snapshot again");
    }
    // Its end is worth waiting for: it gives the memory free in pieces, which holds the guest less.
    if (fds[1].revents != 0) end = now + kEndGrace;
    if (now > end) return absl::OkStatus();
    const uint64_t heartbeat = board_->heartbeat.load();
    const bool moves = heartbeat == 0 || std::exchange(beat, heartbeat) != heartbeat;  // 0: it has not begun.
    const bool waited_for = board_->in_hand.load() != 0 || WritesWait(protection_.userfaultfd());
    const absl::Duration passed = std::min(now - before, 2 * kWatchTick);
    before = now;
    still = moves ? absl::ZeroDuration() : still + passed;
    guest_waits = moves || !waited_for ? absl::ZeroDuration() : guest_waits + passed;
    if (guest_waits >= kLongestWait || still >= kLongestStandstill) {
      return absl::AbortedError(absl::StrCat("the memory engine (process ", pid_, ") has not moved for ",
                                             absl::FormatDuration(still),
                                             waited_for ? " while the guest waited for it" : "",
                                             " and was ended; look whether it was stopped, and try again"));
    }
  }
}

void MemoryEngine::Fail(const absl::Status& why) {
  absl::MutexLock lock(&mutex_);
  if (status_.ok()) status_ = why;
  failed_.Wake();
}

absl::Status MemoryEngine::status() const {
  absl::MutexLock lock(&mutex_);
  if (status_.ok() && board_->cancelled.load()) return absl::CancelledError("the capture was cancelled");
  return status_;
}

uint64_t MemoryEngine::bytes_written() const { return board_->bytes_written.load(); }

void MemoryEngine::Cancel() {
  if (board_ != nullptr) board_->cancelled.store(true);
}

absl::Status MemoryEngine::Call(EngineRequest request, int64_t number, int fd, absl::Duration deadline) {
  STILL_RETURN_IF_ERROR(status());
  STILL_RETURN_IF_ERROR(SendCommand(socket_.get(), {.request = request, .number = number}, fd));
  pollfd fds[] = {{.fd = socket_.get(), .events = POLLIN, .revents = 0},
                  {.fd = failed_.fd(), .events = POLLIN, .revents = 0}};
  const absl::Duration end = Clock::Real().Monotonic() + deadline;
  for (;;) {
    const absl::Duration left = end - Clock::Real().Monotonic();
    const int ready = ::poll(fds, 2, PollTimeout(std::max(left, absl::ZeroDuration())));
    if (ready < 0 && errno == EINTR) continue;
    if (fds[1].revents != 0) return status();
    if (fds[0].revents == 0) {
      if (left > absl::ZeroDuration()) continue;
      // Its late answer would be taken for the next one's.
      Fail(absl::AbortedError("the memory engine did not answer in time"));
      return absl::DeadlineExceededError("the memory engine did not answer in time");
    }
    absl::StatusOr<EngineAnswer> answer = ReceiveAnswer(socket_.get());
    if (!answer.ok()) {
      // The watchdog says why.
      pollfd why{.fd = failed_.fd(), .events = POLLIN, .revents = 0};
      (void)::poll(&why, 1, PollTimeout(kEndGrace));
      const absl::Status failed = status();
      return failed.ok() ? answer.status() : failed;
    }
    figures_ = answer->figures;
    return absl::Status(static_cast<absl::StatusCode>(answer->code), answer->message);
  }
}

absl::Status MemoryEngine::Arm(OwnedFd sink, absl::Duration deadline, const MemorySaver::Wish& wish) {
  return Call(EngineRequest::kArm, NumberOf(wish), sink.get(), deadline);
}

absl::Status MemoryEngine::Round(absl::Duration deadline) { return Call(EngineRequest::kRound, 0, -1, deadline); }

absl::Status MemoryEngine::Protect(absl::Duration deadline) { return Call(EngineRequest::kProtect, 0, -1, deadline); }

absl::Status MemoryEngine::Save(absl::Time resumed, absl::Duration deadline) {
  return Call(EngineRequest::kSave, absl::ToUnixMicros(resumed), -1, deadline);
}

absl::Status MemoryEngine::Finish(const OwnedFd& device_state) {
  return Call(EngineRequest::kFinish, 0, device_state.get(), absl::InfiniteDuration());
}

}  // namespace still::session
