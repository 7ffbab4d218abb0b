#include "session/disk_keeper.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/log.h"

namespace still::session {
namespace {

// How often the disks are looked at.
constexpr absl::Duration kLookInterval = absl::Milliseconds(250);
constexpr absl::Duration kFirstRetry = absl::Milliseconds(500);
constexpr absl::Duration kLongestRetry = absl::Seconds(15);
// On a busy host a read that fails takes its time. Taken for a success, it would keep the pauses between two tries so short
// that no repair gets in.
constexpr absl::Duration kMeetsAgain = absl::Seconds(5);

constexpr absl::string_view kGuest = "the guest is held";
constexpr absl::string_view kHydration = "hydration is held";

}  // namespace

bool DiskKeeper::Retry::Due() const { return Clock::Real().Monotonic() >= next; }

void DiskKeeper::Retry::Failed() {
  delay = std::clamp(delay * 2, kFirstRetry, kLongestRetry);
  next = Clock::Real().Monotonic() + delay;
}

DiskKeeper::DiskKeeper(Vm& vm, std::unique_ptr<DiskServer> server, std::string source)
    : vm_(vm), source_(std::move(source)), server_(std::move(server)), thread_([this] { Keep(); }) {}

DiskKeeper::~DiskKeeper() {
  {
    absl::MutexLock lock(&mutex_);
    ending_ = true;
  }
  thread_.join();
}

void DiskKeeper::Hydrate(uint64_t bytes_per_second) {
  absl::MutexLock lock(&mutex_);
  hydration_wanted_ = hydration_asked_ = true;
  bytes_per_second_ = bytes_per_second;
}

std::string DiskKeeper::trouble() const {
  absl::MutexLock lock(&mutex_);
  return trouble_;
}

void DiskKeeper::Keep() {
  while (!Tend()) {
    absl::MutexLock lock(&mutex_);
    if (mutex_.AwaitWithTimeout(absl::Condition(&ending_), kLookInterval)) break;
  }
  server_.reset();
}

bool DiskKeeper::Tend() {
  LazyDisks& disks = *vm_.lazy_disks();
  absl::StatusOr<bool> held = disks.Held();
  if (!held.ok()) return false;  // The VM is on its way out, or busy: its session knows.
  if (*held) {
    if (go_on_.Due()) {
      LetGoOn();
    } else {
      // Nobody reads. As long as the server has the repository open, nothing in it can be repaired.
      server_->Suspend();
    }
    return false;
  }
  absl::StatusOr<std::vector<LazyDiskState>> states = disks.Query();
  if (!states.ok()) return false;
  auto complete = [](const LazyDiskState& state) { return state.complete; };
  if (std::all_of(states->begin(), states->end(), complete)) {
    LogInfo("the disks are complete", {{"source", source_}});
    EndTrouble();
    return true;
  }
  // It has run on for longer than it takes to meet the same read again.
  if (go_on_.delay > absl::ZeroDuration() && Clock::Real().Monotonic() >= go_on_.next + kMeetsAgain) {
    LogInfo("the guest goes on", {{"source", source_}});
    go_on_ = {};
    EndTrouble();
  }
  uint64_t bytes_per_second;
  bool asked;
  {
    absl::MutexLock lock(&mutex_);
    if (!hydration_wanted_) return false;
    asked = std::exchange(hydration_asked_, false);
    bytes_per_second = bytes_per_second_;
  }
  auto idle = [](const LazyDiskState& state) { return !state.complete && !state.hydrating; };
  if (asked) hydrate_ = {};
  if (!asked && !hydrate_.Due()) return false;
  if (asked || std::any_of(states->begin(), states->end(), idle)) {
    ContinueHydration(disks, bytes_per_second);
  } else if (absl::StartsWith(trouble(), kHydration)) {
    EndTrouble();  // It has gone on for as long as it waited.
  }
  return false;
}

void DiskKeeper::LetGoOn() {
  SetTrouble(kGuest, server_->last_error());
  absl::Status back = server_->Restart();
  if (back.ok()) back = vm_.Resume();
  // The server's last words may have come only now: also a success is told with them, until the guest has gone on.
  SetTrouble(kGuest, back.message());
  // Also after a success: whether it can read now is seen by its being held again.
  go_on_.Failed();
}

void DiskKeeper::ContinueHydration(LazyDisks& disks, uint64_t bytes_per_second) {
  // A job that is gone and has not completed its disk has failed.
  if (hydrate_.delay > absl::ZeroDuration()) {
    SetTrouble(kHydration, server_->last_error());
    if (absl::Status back = server_->Restart(); !back.ok()) {
      SetTrouble(kHydration, back.message());
      hydrate_.Failed();
      return;
    }
  }
  if (absl::Status begun = disks.Hydrate(bytes_per_second); !begun.ok()) {
    SetTrouble(kHydration, begun.message());
  }
  hydrate_.Failed();
}

void DiskKeeper::SetTrouble(absl::string_view what_is_held, absl::string_view why) {
  const std::string unread = server_->unread();
  std::string trouble = absl::StrCat(what_is_held, ": ", source_, " cannot be read");
  if (!unread.empty()) absl::StrAppend(&trouble, ": ", unread);
  if (!why.empty()) absl::StrAppend(&trouble, "; ", why);
  absl::MutexLock lock(&mutex_);
  if (trouble == trouble_) return;
  LogWarning("a disk cannot be read", {{"trouble", trouble}});
  trouble_ = std::move(trouble);
}

void DiskKeeper::EndTrouble() {
  server_->ForgetUnread();
  absl::MutexLock lock(&mutex_);
  trouble_.clear();
}

}  // namespace still::session
