#include "session/memory/memory_saver.h"

#include <linux/userfaultfd.h>
#include <poll.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/clock.h"
#include "base/nonblocking.h"

namespace still::session {
namespace {

// Protecting one piece holds nobody: writers only wait for what they write to.
constexpr uint64_t kArmBytes = 8 << 20;
// A round is worth while as long as the one before found so much: each run is a call.
constexpr uint64_t kFewRuns = 64;
// What is lifted together as long as nobody needs to know which page was written to. A large page, which stays whole then; just before
// and after the point less, because it is copied before it is lifted.
constexpr uint64_t kLargePages = 512;
constexpr uint64_t kFewPages = 16;
constexpr int kMaxRounds = 3;
constexpr absl::Duration kBeat = absl::Milliseconds(20);
constexpr size_t kMessages = 64;
// The guest waits for the answering thread (docs/qemu.md, "Who gets the processors").
constexpr int kAnswererNice = -10;

}  // namespace

void SetThreadNice(int nice) { (void)::setpriority(PRIO_PROCESS, static_cast<id_t>(::syscall(SYS_gettid)), nice); }

absl::Time WallClock() {
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  return absl::TimeFromTimespec(now);
}

absl::StatusOr<std::unique_ptr<MemorySaver>> MemorySaver::Create(OwnedFd userfaultfd, const MemoryRange& range,
                                                                 EngineBoard& board, Options options) {
  STILL_ASSIGN_OR_RETURN(ProcessMemory memory, ProcessMemory::Open(range));
  STILL_ASSIGN_OR_RETURN(Waker stop, Waker::Create());
  STILL_RETURN_IF_ERROR(SetNonBlocking(userfaultfd.get()));
  return std::unique_ptr<MemorySaver>(
      new MemorySaver(std::move(userfaultfd), std::move(memory), board, options, std::move(stop)));
}

MemorySaver::MemorySaver(OwnedFd userfaultfd, ProcessMemory memory, EngineBoard& board, Options options, Waker stop)
    : userfaultfd_(std::move(userfaultfd)),
      memory_(std::move(memory)),
      protection_(userfaultfd_.get(), memory_.range().address, memory_.range().bytes),
      board_(board),
      options_(options),
      stop_(std::move(stop)),
      current_(MakeStates(kSaved)),
      written_(MakeStates(kSaved)) {
  states_ = current_.get();
  since_point_ = written_.get();
}

std::unique_ptr<MemorySaver::PageStates[]> MemorySaver::MakeStates(PageState state) const {
  std::unique_ptr<PageStates[]> states(new PageStates[pages()]);
  for (uint64_t i = 0; i < pages(); ++i) states[i].store(state, std::memory_order_relaxed);
  return states;
}

MemorySaver::~MemorySaver() {
  board_.cancelled = true;
  Abandon(absl::CancelledError("the capture was given up"));
  if (copier_.joinable()) copier_.join();
  stop_.Wake();
  if (answerer_.joinable()) answerer_.join();
}

absl::Status MemorySaver::Arm(OwnedFd sink, const Wish& wish) {
  STILL_RETURN_IF_ERROR(CheckAlive());
  if (wish.content == Content::kIncrement && !track_) {
    return absl::FailedPreconditionError("what was written to the memory was not noted");
  }
  STILL_ASSIGN_OR_RETURN(sink_, Sink::Create(std::move(sink), options_.stall_limit, board_.cancelled));
  figures_ = {};
  faults_ = 0;
  saved_early_ = 0;
  increment_ = wish.content == Content::kIncrement;
  beside_ = wish.content == Content::kAllBeside;
  over_image_ = wish.over_image && !increment_;
  if (!increment_) all_ = MakeStates(kWanted);
  if (!registered_) STILL_RETURN_IF_ERROR(ArmAll());
  track_ = wish.track;
  for (int round = 0; round < kMaxRounds; ++round) {
    STILL_ASSIGN_OR_RETURN(uint64_t open, Round());
    if (open < kFewRuns) break;
  }
  return absl::OkStatus();
}

absl::Status MemorySaver::ArmAll() {
  STILL_RETURN_IF_ERROR(memory_.Populate().status());
  board_.heartbeat.fetch_add(1);  // From here on somebody may wait for us.
  STILL_RETURN_IF_ERROR(protection_.Register());
  registered_ = true;
  lift_pages_ = kLargePages;
  phase_ = Phase::kNoting;
  answerer_ = std::thread([this] { AnswerLoop(); });
  for (uint64_t at = 0; at < protection_.bytes(); at += kArmBytes) {
    if (board_.cancelled) return absl::CancelledError("the capture was cancelled");
    STILL_RETURN_IF_ERROR(protection_.Protect(at, std::min(kArmBytes, protection_.bytes() - at)));
  }
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> MemorySaver::Round() {
  ++figures_.rounds;
  hot_.clear();
  return ProtectOpen(false);
}

absl::Status MemorySaver::LastRound() {
  lift_pages_ = std::min(lift_pages_.load(), kFewPages);
  return Round().status();
}

absl::Status MemorySaver::Protect() {
  STILL_RETURN_IF_ERROR(CheckAlive());
  const absl::Duration begun = Clock::Real().Monotonic();
  hot_.clear();
  figures_.reprotected_pages = 0;
  do {
    STILL_RETURN_IF_ERROR(ProtectOpen(true).status());
  } while (!Seal());  // A device has written meanwhile: the point is after that.
  for (const PageRun& run : hot_) figures_.reprotected_pages += run.count;
  figures_.protect_ns = static_cast<uint64_t>(absl::ToInt64Nanoseconds(Clock::Real().Monotonic() - begun));
  return absl::OkStatus();
}

// The point, if nothing is open; no page is looked at. From here on what is written must be saved first.
bool MemorySaver::Seal() {
  std::lock_guard<std::mutex> lock(open_mutex_);
  if (!open_.empty()) return false;
  // What was written since the last point is what is wanted, and nothing was written since this one.
  if (increment_) {
    current_.swap(written_);
  } else {
    if (!beside_) written_.swap(current_);
    current_.swap(all_);
  }
  states_ = current_.get();
  since_point_ = written_.get();
  lift_pages_ = track_ || over_image_ ? 1 : kFewPages;
  phase_ = Phase::kSealed;
  return true;
}

// Neighbours in one call. Outside the pause a page may be written again at once: it is noted again then, because the list
// is taken under the mutex under which pages are noted *and* lifted.
absl::StatusOr<uint64_t> MemorySaver::ProtectOpen(bool in_pause) {
  std::vector<PageRun> open;
  {
    std::lock_guard<std::mutex> lock(open_mutex_);
    open.swap(open_);
  }
  std::sort(open.begin(), open.end(), [](const PageRun& a, const PageRun& b) { return a.page < b.page; });
  uint64_t runs = 0;
  for (size_t i = 0; i < open.size(); ++runs) {
    const uint64_t begin = open[i].page;
    uint64_t end = begin;
    for (; i < open.size() && open[i].page <= end; ++i) end = std::max(end, open[i].page + open[i].count);
    const bool left_out = in_pause && options_.leave_out > 0 && begin % options_.leave_out == 0;
    if (!left_out) STILL_RETURN_IF_ERROR(protection_.Protect(begin * kPageBytes, (end - begin) * kPageBytes));
    hot_.push_back({.page = begin, .count = end - begin});
  }
  return runs;
}

absl::Status MemorySaver::Save(absl::Time resumed) {
  STILL_RETURN_IF_ERROR(CheckAlive());
  std::vector<absl::Time> in_pause;
  {
    std::lock_guard<std::mutex> lock(open_mutex_);
    in_pause.swap(in_pause_);
    if (phase_ == Phase::kSealed) phase_ = Phase::kSaving;
  }
  const auto late = std::count_if(in_pause.begin(), in_pause.end(), [&](absl::Time at) { return at < resumed; });
  if (late > 0) {
    absl::Status status = absl::AbortedError("a device has written to the machine's memory while it stood still");
    Abandon(status);
    return status;
  }
  copier_ = std::thread([this] {
    copied_ = CopyAll();
    if (!copied_.ok()) Abandon(copied_);
  });
  return absl::OkStatus();
}

absl::Status MemorySaver::Finish(const OwnedFd& device_state) {
  if (!copier_.joinable()) return absl::FailedPreconditionError("nothing is being saved");
  copier_.join();
  absl::Status status = copied_;
  if (status.ok()) status = SendDeviceState(device_state);
  figures_.faults = faults_;
  figures_.saved_early = saved_early_;
  sink_.reset();
  all_.reset();
  if (status.ok() && track_) {
    std::lock_guard<std::mutex> lock(open_mutex_);
    phase_ = Phase::kNoting;
    return status;
  }
  // Not only when it has failed: what is not registered costs the guest nothing.
  Abandon(status.ok() ? absl::CancelledError("the memory has been saved") : status);
  return status;
}

void MemorySaver::AnswerLoop() {
  SetThreadNice(kAnswererNice);
  std::vector<uffd_msg> messages(kMessages);
  std::vector<uint64_t> written;
  for (;;) {
    board_.heartbeat.fetch_add(1);
    pollfd fds[] = {{.fd = userfaultfd_.get(), .events = POLLIN, .revents = 0},
                    {.fd = stop_.fd(), .events = POLLIN, .revents = 0}};
    (void)::poll(fds, 2, PollTimeout(kBeat));
    if (fds[1].revents != 0) return;
    if (fds[0].revents == 0) continue;
    // Before they are read: nobody else sees them afterwards.
    board_.in_hand.store(1);
    const ssize_t got = ::read(userfaultfd_.get(), messages.data(), messages.size() * sizeof messages[0]);
    written.clear();
    for (size_t i = 0; got > 0 && i < static_cast<size_t>(got) / sizeof messages[0]; ++i) {
      if (messages[i].event != UFFD_EVENT_PAGEFAULT) continue;
      written.push_back((messages[i].arg.pagefault.address - protection_.address()) / kPageBytes);
    }
    faults_ += written.size();
    if (!written.empty()) Answer(written);
    board_.in_hand.store(0);
  }
}

void MemorySaver::Answer(std::vector<uint64_t>& written) {
  std::sort(written.begin(), written.end());
  written.erase(std::unique(written.begin(), written.end()), written.end());
  {
    // Asked under the mutex, under which Save() takes the list: one that came later would be taken for the next save's.
    std::lock_guard<std::mutex> lock(open_mutex_);
    if (phase_ == Phase::kSealed) in_pause_.push_back(WallClock());
  }
  for (size_t i = 0; i < written.size();) {
    size_t next = i + 1;
    while (next < written.size() && written[next] == written[next - 1] + 1) ++next;
    LiftRun(written[i], next - i);
    i = next;
  }
}

void MemorySaver::LiftRun(uint64_t page, uint64_t count) {
  for (;;) {
    const Phase phase = phase_;
    const uint64_t around = lift_pages_;
    const uint64_t begin = page / around * around;
    const uint64_t end = std::min((page + count + around - 1) / around * around, pages());
    if (phase == Phase::kSealed || phase == Phase::kSaving) SaveWritten(begin, end - begin);
    // What is noted has been lifted when the mutex is free again: see ProtectOpen.
    std::lock_guard<std::mutex> lock(open_mutex_);
    const bool saving = phase_ == Phase::kSealed || phase_ == Phase::kSaving;
    if (phase == Phase::kNoting && saving) {
      // The point has come in between: it must be saved first.
      if (phase_ == Phase::kSealed) in_pause_.push_back(WallClock());
      continue;
    }
    if (phase_ == Phase::kNoting || (saving && track_)) Note({.page = begin, .count = end - begin});
    // An error means that the machine has ended, or that the memory is not registered any more.
    (void)protection_.Lift(begin * kPageBytes, (end - begin) * kPageBytes);
    return;
  }
}

// With open_mutex_ held.
void MemorySaver::Note(const PageRun& run) {
  open_.push_back(run);
  PageStates* const written = since_point_;
  for (uint64_t i = run.page; i < run.page + run.count; ++i) written[i].store(kWanted, std::memory_order_relaxed);
}

void MemorySaver::SaveWritten(uint64_t page, uint64_t count) {
  PageStates* const states = states_;
  const uint64_t end = page + count;
  for (uint64_t i = page; i < end;) {
    const uint64_t wanted = Claim(i, end);
    if (wanted == 0) {
      // The copier may have it: it is done with it in some ten microseconds.
      while (states[i].load(std::memory_order_acquire) == kBeingCopied && phase_ != Phase::kAbandoned) ::sched_yield();
      ++i;
      continue;
    }
    Piece piece{.page = i, .bytes = std::string(wanted * kPageBytes, '\0')};
    if (absl::Status read = memory_.Read(i * kPageBytes, piece.bytes.data(), piece.bytes.size()); !read.ok()) {
      return Abandon(read);
    }
    std::unique_lock<std::mutex> lock(pieces_mutex_);
    while (pieces_bytes_ >= options_.max_waiting_bytes && phase_ != Phase::kAbandoned) {
      board_.heartbeat.fetch_add(1);
      pieces_room_.wait_for(lock, absl::ToChronoMilliseconds(kBeat));
    }
    pieces_bytes_ += piece.bytes.size();
    pieces_.push_back(std::move(piece));
    lock.unlock();
    saved_early_ += wanted;
    for (const uint64_t saved = i + wanted; i < saved; ++i) states[i].store(kSaved, std::memory_order_release);
  }
}

absl::Status MemorySaver::CheckAlive() {
  if (board_.cancelled) return absl::CancelledError("the capture was cancelled");
  std::lock_guard<std::mutex> lock(failure_mutex_);
  return failure_;
}

void MemorySaver::Abandon(const absl::Status& why) {
  {
    std::lock_guard<std::mutex> lock(failure_mutex_);
    if (phase_ == Phase::kAbandoned) return;
    failure_ = why;
    phase_ = Phase::kAbandoned;
  }
  pieces_room_.notify_all();
  if (!registered_) return;
  // An error: the machine has ended.
  (void)protection_.LiftAll();
  (void)protection_.Unregister();
}

}  // namespace still::session
