#include "session/vm_keeper.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/log.h"

namespace still::session {
namespace {

// How often the machine is looked at.
constexpr absl::Duration kLookInterval = absl::Milliseconds(250);
constexpr absl::Duration kFirstRetry = absl::Milliseconds(500);
constexpr absl::Duration kLongestRetry = absl::Seconds(15);
// On a busy host a read that fails takes its time. Taken for a success, it would keep the pauses between two tries so short
// that no repair gets in.
constexpr absl::Duration kMeetsAgain = absl::Seconds(5);
// A pause is one that somebody forgot once it has lasted so long: whoever resumes the machine in time needs no help.
constexpr absl::Duration kForgotten = absl::Seconds(1);
constexpr absl::Duration kTellFor = absl::Hours(1);

constexpr absl::string_view kGuest = "the guest is held";
constexpr absl::string_view kHydration = "hydration is held";

}  // namespace

bool VmKeeper::Retry::Due() const { return Clock::Real().Monotonic() >= next; }

void VmKeeper::Retry::Failed() {
  delay = std::clamp(delay * 2, kFirstRetry, kLongestRetry);
  next = Clock::Real().Monotonic() + delay;
}

VmKeeper::VmKeeper(Vm& vm, std::unique_ptr<DiskServer> server, std::string source)
    : vm_(vm), source_(std::move(source)), server_(std::move(server)), thread_([this] { Keep(); }) {}

VmKeeper::~VmKeeper() {
  {
    absl::MutexLock lock(&mutex_);
    ending_ = true;
  }
  thread_.join();
}

void VmKeeper::Watch() {
  absl::MutexLock lock(&mutex_);
  watching_ = true;
}

void VmKeeper::Hydrate(uint64_t bytes_per_second) {
  absl::MutexLock lock(&mutex_);
  hydration_wanted_ = hydration_asked_ = true;
  bytes_per_second_ = bytes_per_second;
}

std::string VmKeeper::trouble() const {
  absl::MutexLock lock(&mutex_);
  return trouble_;
}

std::string VmKeeper::found_paused() const {
  absl::MutexLock lock(&mutex_);
  return Clock::Real().Now() - found_paused_at_ < kTellFor ? found_paused_ : "";
}

void VmKeeper::Keep() {
  for (;;) {
    Tend();
    absl::MutexLock lock(&mutex_);
    if (mutex_.AwaitWithTimeout(absl::Condition(&ending_), kLookInterval)) break;
  }
  server_.reset();
}

void VmKeeper::Tend() {
  if (absl::Status tidied = vm_.Tidy(); !tidied.ok()) {
    LogWarning("what a capture made is not given back yet", {{"error", tidied.ToString()}});
  }
  absl::StatusOr<std::optional<Standstill>> standstill = vm_.FindStandstill();
  if (!standstill.ok()) return;  // The VM is on its way out, or busy: its session knows.
  if (!standstill->has_value()) {
    paused_since_ = absl::InfiniteDuration();
    NoteThatItRuns();
    if (server_ != nullptr) TendDisks();
  } else if ((*standstill)->kind == Standstill::Kind::kHeld) {
    TendHeld(**standstill);
  } else {
    TendPaused(**standstill);
  }
}

void VmKeeper::TendHeld(const Standstill& held) {
  if (!go_on_.Due()) {
    // Nobody reads. As long as the server has the repository open, nothing in it can be repaired.
    if (server_ != nullptr) server_->Suspend();
    return;
  }
  // The first write into a block of a lazy disk reads the rest of it: then it is the server that knows why it failed.
  bool at_server = server_ != nullptr && (!held.write || !server_->unread().empty());
  if (at_server) SetServerTrouble(kGuest, server_->last_error());
  absl::Status back;
  if (server_ != nullptr) {
    back = server_->Restart();
    at_server |= !back.ok();
  }
  if (back.ok()) back = vm_.Resume();
  // Also a success is told, until the guest has gone on; the server's last words may have come only now.
  if (at_server) {
    SetServerTrouble(kGuest, back.message());
  } else {
    SetDiskTrouble(held, back.message());
  }
  // Also after a success: whether it can go on now is seen by its being held again.
  go_on_.Failed();
}

void VmKeeper::TendPaused(const Standstill& paused) {
  {
    absl::MutexLock lock(&mutex_);
    if (!watching_) return;
  }
  const absl::Duration now = Clock::Real().Monotonic();
  paused_since_ = std::min(paused_since_, now);
  if (now - paused_since_ < kForgotten) return;
  absl::Status resumed = vm_.Resume();
  std::string found = absl::StrCat(absl::FormatTime("%Y-%m-%d %H:%M:%S UTC", Clock::Real().Now(), absl::UTCTimeZone()),
                                   ": the machine was found paused without a snapshot under way (", paused.reason, ") ",
                                   resumed.ok() ? "and goes on" : "and cannot be resumed: ", resumed.message());
  LogError("the machine was found paused", {{"what", found}});
  absl::MutexLock lock(&mutex_);
  found_paused_ = std::move(found);
  found_paused_at_ = Clock::Real().Now();
}

void VmKeeper::NoteThatItRuns() {
  // It has run on for longer than it takes to meet the same read or write again.
  if (go_on_.delay == absl::ZeroDuration() || Clock::Real().Monotonic() < go_on_.next + kMeetsAgain) return;
  LogInfo("the guest goes on", {{"source", source_}});
  go_on_ = {};
  EndTrouble();
}

void VmKeeper::TendDisks() {
  LazyDisks& disks = *vm_.lazy_disks();
  absl::StatusOr<std::vector<LazyDiskState>> states = disks.Query();
  if (!states.ok()) return;
  auto complete = [](const LazyDiskState& state) { return state.complete; };
  if (std::all_of(states->begin(), states->end(), complete)) {
    LogInfo("the disks are complete", {{"source", source_}});
    EndTrouble();
    server_.reset();
    return;
  }
  uint64_t bytes_per_second;
  bool asked;
  {
    absl::MutexLock lock(&mutex_);
    if (!hydration_wanted_) return;
    asked = std::exchange(hydration_asked_, false);
    bytes_per_second = bytes_per_second_;
  }
  auto idle = [](const LazyDiskState& state) { return !state.complete && !state.hydrating; };
  if (asked) hydrate_ = {};
  if (!asked && !hydrate_.Due()) return;
  if (asked || std::any_of(states->begin(), states->end(), idle)) {
    ContinueHydration(disks, bytes_per_second);
  } else if (absl::StartsWith(trouble(), kHydration)) {
    EndTrouble();  // It has gone on for as long as it waited.
  }
}

void VmKeeper::ContinueHydration(LazyDisks& disks, uint64_t bytes_per_second) {
  // A job that is gone and has not completed its disk has failed.
  if (hydrate_.delay > absl::ZeroDuration()) {
    SetServerTrouble(kHydration, server_->last_error());
    if (absl::Status back = server_->Restart(); !back.ok()) {
      SetServerTrouble(kHydration, back.message());
      hydrate_.Failed();
      return;
    }
  }
  if (absl::Status begun = disks.Hydrate(bytes_per_second); !begun.ok()) {
    SetServerTrouble(kHydration, begun.message());
  }
  hydrate_.Failed();
}

void VmKeeper::SetServerTrouble(absl::string_view what_is_held, absl::string_view why) {
  const std::string unread = server_->unread();
  std::string trouble = absl::StrCat(what_is_held, ": ", source_, " cannot be read");
  if (!unread.empty()) absl::StrAppend(&trouble, ": ", unread);
  if (!why.empty()) absl::StrAppend(&trouble, "; ", why);
  SetTrouble(std::move(trouble));
}

void VmKeeper::SetDiskTrouble(const Standstill& held, absl::string_view why_not_resumed) {
  std::string trouble = absl::StrCat(kGuest, ": ", held.disk.empty() ? "a disk" : absl::StrCat("disk ", held.disk),
                                     " cannot be ", held.write ? "written" : "read");
  if (!held.reason.empty()) absl::StrAppend(&trouble, ": ", held.reason);
  if (!why_not_resumed.empty()) absl::StrAppend(&trouble, "; ", why_not_resumed);
  SetTrouble(std::move(trouble));
}

void VmKeeper::SetTrouble(std::string trouble) {
  absl::MutexLock lock(&mutex_);
  if (trouble == trouble_) return;
  LogWarning("the guest or its hydration is held", {{"trouble", trouble}});
  trouble_ = std::move(trouble);
}

void VmKeeper::EndTrouble() {
  if (server_ != nullptr) server_->ForgetUnread();
  absl::MutexLock lock(&mutex_);
  trouble_.clear();
}

}  // namespace still::session
