#include "session/disk_server.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/memory/memory.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/child_watch.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/nonblocking.h"
#include "base/pipe.h"
#include "base/unix_socket.h"

namespace still::session {
namespace {

constexpr size_t kMaxLine = 4096;
// Between two starts of a program that ends by itself: at first at once, then less and less often.
constexpr absl::Duration kFirstDelay = absl::Milliseconds(100);
constexpr absl::Duration kLongestDelay = absl::Seconds(5);
// To give its lease on the repository back. It only reads: nothing is lost when it does not get that far.
constexpr absl::Duration kEndGrace = absl::Seconds(1);
// The first bytes that every NBD server sends (doc/proto.md of the nbd project, "Newstyle negotiation").
constexpr absl::string_view kGreeting = "NBDMAGIC";
// How nbdkit marks an error, and how a plugin begins one that is about a client's read.
constexpr char kError[] = "error: ";
constexpr absl::string_view kCannotRead = "cannot read ";

void End(const ChildProcess& program, int signal) {
  if (absl::Status ended = program.Kill(signal); !ended.ok()) {
    LogError("the disk server could not be ended", {{"error", ended.ToString()}});
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<DiskServer>> DiskServer::Start(Options options) {
  STILL_ASSIGN_OR_RETURN(Waker wake, Waker::Create());
  auto server = absl::WrapUnique(new DiskServer(std::move(options), std::move(wake)));
  STILL_ASSIGN_OR_RETURN(server->listening_, ListenUnix(server->options_.socket_path));
  server->keeper_ = std::thread([raw = server.get()] { raw->Keep(); });
  STILL_RETURN_IF_ERROR(server->AwaitServing(1));
  return server;
}

DiskServer::~DiskServer() {
  {
    absl::MutexLock lock(&mutex_);
    ending_ = true;
  }
  wake_.Wake();
  if (keeper_.joinable()) keeper_.join();
  ::unlink(options_.socket_path.c_str());
}

absl::Status DiskServer::Restart() {
  uint64_t generation;
  {
    absl::MutexLock lock(&mutex_);
    generation = wanted_ = generation_ + 1;
    state_ = State::kStarting;
    suspended_ = false;
  }
  wake_.Wake();
  return AwaitServing(generation);
}

absl::Status DiskServer::AwaitServing(uint64_t generation) {
  absl::MutexLock lock(&mutex_);
  auto settled = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return generation_ >= generation && state_ != State::kStarting;
  };
  if (!mutex_.AwaitWithTimeout(absl::Condition(&settled), options_.start_deadline)) {
    return absl::DeadlineExceededError("the disk server does not serve");
  }
  if (state_ == State::kServing) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("the disk server ended: ", last_error_.empty() ? "it said nothing" : last_error_));
}

void DiskServer::Suspend() {
  {
    absl::MutexLock lock(&mutex_);
    suspended_ = true;
  }
  wake_.Wake();
}

bool DiskServer::serving() const {
  absl::MutexLock lock(&mutex_);
  return state_ == State::kServing;
}

std::string DiskServer::last_error() const {
  absl::MutexLock lock(&mutex_);
  return last_error_;
}

std::string DiskServer::unread() const {
  absl::MutexLock lock(&mutex_);
  return unread_;
}

void DiskServer::ForgetUnread() {
  absl::MutexLock lock(&mutex_);
  unread_.clear();
}

void DiskServer::SetState(State state) {
  absl::MutexLock lock(&mutex_);
  // A restart that was asked for meanwhile is about the next program.
  if (generation_ >= wanted_) state_ = state;
}

// Only what nbdkit reports as an error explains anything to an operator; all of it is in the log.
void DiskServer::Hear(absl::string_view text) {
  for (char c : text) {
    if (c != '\n') {
      if (partial_line_.size() < kMaxLine) partial_line_ += c;
      continue;
    }
    LogInfo("disk server", {{"said", partial_line_}});
    if (const size_t at = partial_line_.find(kError); at != std::string::npos) {
      absl::string_view error = absl::string_view(partial_line_).substr(at + sizeof kError - 1);
      absl::MutexLock lock(&mutex_);
      const bool about_a_read = absl::ConsumePrefix(&error, kCannotRead);
      (about_a_read ? unread_ : last_error_) = std::string(error);
    }
    partial_line_.clear();
  }
}

absl::StatusOr<ChildProcess> DiskServer::StartProgram(OwnedFd& stderr_read) {
  STILL_ASSIGN_OR_RETURN(Pipe said, MakePipe());
  STILL_RETURN_IF_ERROR(SetNonBlocking(said.read_end.get()));
  stderr_read = std::move(said.read_end);
  ProcessOptions process{.argv = options_.command, .working_directory = "/", .stderr_fd = said.write_end.get()};
  process.end_with_parent = true;
  process.argv.insert(process.argv.end(), {"--listen-fd", absl::StrCat(listening_.get())});
  process.inherited_fds = {listening_.get()};
  if (options_.secret.valid()) {
    process.argv.insert(process.argv.end(), {"--passphrase-fd", absl::StrCat(options_.secret.get())});
    process.inherited_fds.push_back(options_.secret.get());
  }
  return ChildProcess::Start(process);
}

void DiskServer::Keep() {
  absl::Duration delay = kFirstDelay;
  for (;;) {
    {
      absl::MutexLock lock(&mutex_);
      auto may_run = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return ending_ || !suspended_; };
      mutex_.Await(absl::Condition(&may_run));
      if (ending_) return;
      ++generation_;
      wanted_ = std::max(wanted_, generation_);
      state_ = State::kStarting;
      last_error_.clear();
    }
    const absl::Duration begun = Clock::Real().Monotonic();
    KeepOne();
    SetState(State::kEnded);
    delay = Clock::Real().Monotonic() - begun > kLongestDelay ? kFirstDelay : std::min(delay * 2, kLongestDelay);
    absl::MutexLock lock(&mutex_);
    auto asked = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return ending_ || wanted_ > generation_; };
    mutex_.AwaitWithTimeout(absl::Condition(&asked), delay);
  }
}

// One run of the program, from its start to its end.
void DiskServer::KeepOne() {
  OwnedFd said;
  absl::StatusOr<ChildProcess> program = StartProgram(said);
  if (!program.ok()) {
    absl::MutexLock lock(&mutex_);
    last_error_ = std::string(program.status().message());
    return;
  }
  // It greets whoever connects, once it can serve.
  absl::StatusOr<OwnedFd> probe = ConnectUnix(options_.socket_path);
  if (probe.ok() && !SetNonBlocking(probe->get()).ok()) probe->Reset();
  auto greeted = [this, &probe](absl::string_view greeting) {
    if (absl::StartsWith(greeting, kGreeting)) SetState(State::kServing);
    probe->Reset();
    return false;
  };
  auto hear = [this](absl::string_view text) {
    Hear(text);
    return true;
  };
  absl::Duration kill_at = absl::InfiniteDuration();
  auto end_when_asked = [this, &program, &kill_at] {
    absl::MutexLock lock(&mutex_);
    if ((ending_ || suspended_ || wanted_ > generation_) && kill_at == absl::InfiniteDuration()) {
      End(*program, SIGTERM);
      kill_at = Clock::Real().Monotonic() + kEndGrace;
    }
    return kill_at;
  };
  absl::StatusOr<WatchedEnd> end =
      WatchChild(*program, {.streams = {{said.get(), hear}, {probe.ok() ? probe->get() : -1, greeted}},
                            .kill_at = end_when_asked,
                            .waker = &wake_});
  LogWarning("the disk server has ended", {{"how", end.ok() ? end->exit.ToString() : end.status().ToString()}});
}

}  // namespace still::session
