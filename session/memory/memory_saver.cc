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
#include <cstring>
#include <utility>

#include "base/clock.h"
#include "base/file.h"
#include "base/nonblocking.h"

namespace still::session {
namespace {

// Protecting one piece holds nobody: writers only wait for what they write to.
constexpr uint64_t kArmBytes = 8 << 20;
constexpr uint64_t kChunkPages = 256;  // Lifted together behind the copier.
constexpr uint64_t kRunPages = 64;     // What a write that meets the copier waits for at most.
// A round is worth while as long as the one before found so much: each run is a call.
constexpr uint64_t kFewRuns = 64;
// Protecting or lifting a large page takes a microsecond, lifting a part of one splits it for tens of them, and each write that
// waits costs its thread 50 or more. So before the point a write opens all of it.
constexpr uint64_t kLargePages = 512;
// The same where pages are small.
constexpr uint64_t kNeighbours = 16;
// How a round tells them apart.
constexpr absl::Duration kDearRound = absl::Microseconds(100);
constexpr absl::Duration kDearLargePage = absl::Microseconds(4);
constexpr int kMaxRounds = 3;
constexpr absl::Duration kBeat = absl::Milliseconds(20);
constexpr size_t kMessages = 64;
// The guest waits for the answering thread; the copier has time (docs/qemu.md, "Who gets the processors").
constexpr int kAnswererNice = -10;
constexpr int kCopierNice = 5;

// Where it may not be had (CAP_SYS_NICE), everything works and is slower on a busy host.
void SetThreadNice(int nice) { (void)::setpriority(PRIO_PROCESS, static_cast<id_t>(::syscall(SYS_gettid)), nice); }

bool IsZero(const char* bytes, size_t size) { return bytes[0] == 0 && std::memcmp(bytes, bytes + 1, size - 1) == 0; }

}  // namespace

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
  const absl::Duration begun = Clock::Real().Monotonic();
  STILL_ASSIGN_OR_RETURN(const uint64_t runs, ProtectOpen(false));
  const absl::Duration took = Clock::Real().Monotonic() - begun;
  const double large_pages = static_cast<double>(figures_.reprotected_pages) / kLargePages;
  if (took > kDearRound && took > kDearLargePage * large_pages) {
    // It is made of small pages: in the pause so much of it would take too long.
    std::lock_guard<std::mutex> lock(open_mutex_);
    lift_pages_ = std::min(lift_pages_, kNeighbours);
  }
  return runs;
}

absl::Status MemorySaver::Protect() {
  STILL_RETURN_IF_ERROR(CheckAlive());
  const absl::Duration begun = Clock::Real().Monotonic();
  STILL_RETURN_IF_ERROR(ProtectOpen(true).status());
  {
    std::lock_guard<std::mutex> lock(open_mutex_);
    lift_pages_ = 1;
  }
  // What was written since the last point is what is wanted, and nothing was written since this one; no page is looked at.
  if (increment_) {
    current_.swap(written_);
  } else {
    if (!beside_) written_.swap(current_);
    current_.swap(all_);
  }
  states_ = current_.get();
  since_point_ = written_.get();
  phase_ = Phase::kSealed;
  figures_.protect_ns = static_cast<uint64_t>(absl::ToInt64Nanoseconds(Clock::Real().Monotonic() - begun));
  return absl::OkStatus();
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
  figures_.reprotected_pages = 0;
  for (size_t i = 0; i < open.size(); ++runs) {
    const uint64_t begin = open[i].page;
    uint64_t end = begin;
    for (; i < open.size() && open[i].page <= end; ++i) end = std::max(end, open[i].page + open[i].count);
    const bool left_out = in_pause && options_.leave_out > 0 && begin % options_.leave_out == 0;
    if (!left_out) STILL_RETURN_IF_ERROR(protection_.Protect(begin * kPageBytes, (end - begin) * kPageBytes));
    figures_.reprotected_pages += end - begin;
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
    SetThreadNice(kCopierNice);
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
  const Phase phase = phase_;
  if (phase == Phase::kSealed || phase == Phase::kSaving) SaveWritten(page, count);
  // What is noted has been lifted when the mutex is free again: see ProtectOpen.
  std::lock_guard<std::mutex> lock(open_mutex_);
  const bool saving = phase_ == Phase::kSealed || phase_ == Phase::kSaving;
  if (phase_ == Phase::kNoting || (saving && track_)) {
    const uint64_t end = std::min((page + count + lift_pages_ - 1) / lift_pages_ * lift_pages_, pages());
    page = page / lift_pages_ * lift_pages_;
    count = end - page;
    open_.push_back({.page = page, .count = count});
    for (uint64_t i = page; i < end; ++i) since_point_.load()[i].store(kWanted, std::memory_order_relaxed);
  }
  // An error means that the machine has ended, or that the memory is not registered any more.
  (void)protection_.Lift(page * kPageBytes, count * kPageBytes);
}

void MemorySaver::SaveWritten(uint64_t page, uint64_t count) {
  PageStates* const states = states_;
  for (uint64_t i = page; i < page + count; ++i) {
    uint8_t state = kWanted;
    if (!states[i].compare_exchange_strong(state, kBeingCopied)) {
      // The copier has it: it is done with it in some ten microseconds.
      while (states[i].load(std::memory_order_acquire) == kBeingCopied && phase_ != Phase::kAbandoned) ::sched_yield();
      continue;
    }
    Piece piece{.page = i, .bytes = std::string(kPageBytes, '\0')};
    if (absl::Status read = memory_.Read(i * kPageBytes, piece.bytes.data(), kPageBytes); !read.ok()) {
      return Abandon(read);
    }
    std::unique_lock<std::mutex> lock(pieces_mutex_);
    while (pieces_bytes_ >= options_.max_waiting_bytes && phase_ != Phase::kAbandoned) {
      board_.heartbeat.fetch_add(1);
      pieces_room_.wait_for(lock, absl::ToChronoMilliseconds(kBeat));
    }
    pieces_.push_back(std::move(piece));
    pieces_bytes_ += kPageBytes;
    lock.unlock();
    ++saved_early_;
    states[i].store(kSaved, std::memory_order_release);
  }
}

absl::Status MemorySaver::CopyAll() {
  STILL_RETURN_IF_ERROR(sink_->WriteHeader(protection_.bytes(), increment_ || over_image_));
  const PageStates* const states = states_;
  std::string buffer(kRunPages * kPageBytes, '\0');
  for (uint64_t begin = 0; begin < pages(); begin += kChunkPages) {
    STILL_RETURN_IF_ERROR(CheckAlive());
    const uint64_t end = std::min(begin + kChunkPages, pages());
    if (over_image_) STILL_RETURN_IF_ERROR(LeaveOutImage(begin, end));
    STILL_RETURN_IF_ERROR(CopyChunk(begin, end, buffer));
    for (uint64_t i = begin; i < end; ++i) {
      while (states[i].load(std::memory_order_acquire) == kBeingCopied) {
        STILL_RETURN_IF_ERROR(CheckAlive());
        STILL_RETURN_IF_ERROR(EmitPieces());  // Whoever has the page may wait for room.
        ::sched_yield();
      }
    }
    STILL_RETURN_IF_ERROR(CheckAlive());
    if (!track_) STILL_RETURN_IF_ERROR(protection_.Lift(begin * kPageBytes, (end - begin) * kPageBytes));
    STILL_RETURN_IF_ERROR(EmitPieces());
  }
  return absl::OkStatus();
}

// A page that is the image's now was so at the point, too. One that is written to meanwhile is the answering thread's before it
// stops being so.
absl::Status MemorySaver::LeaveOutImage(uint64_t begin, uint64_t end) {
  STILL_ASSIGN_OR_RETURN(const std::vector<bool> own, memory_.OwnPages(begin, end - begin));
  for (uint64_t i = begin; i < end; ++i) {
    uint8_t wanted = kWanted;
    if (!own[i - begin]) states_.load()[i].compare_exchange_strong(wanted, kSaved);
  }
  return absl::OkStatus();
}

absl::Status MemorySaver::CopyChunk(uint64_t begin, uint64_t end, std::string& buffer) {
  PageStates* const states = states_;
  for (uint64_t i = begin; i < end;) {
    uint64_t count = 0;
    for (uint8_t wanted = kWanted;
         i + count < end && count < kRunPages && states[i + count].compare_exchange_strong(wanted, kBeingCopied);
         wanted = kWanted) {
      ++count;
    }
    if (count == 0) {
      ++i;
      continue;
    }
    const absl::Status read = memory_.Read(i * kPageBytes, buffer.data(), count * kPageBytes);
    for (uint64_t k = i; k < i + count; ++k) states[k].store(kSaved, std::memory_order_release);
    STILL_RETURN_IF_ERROR(read);
    STILL_RETURN_IF_ERROR(Emit(i, buffer.data(), count));
    i += count;
  }
  return absl::OkStatus();
}

// Zero pages are left out where all memory is sent: else they may have been something else before.
absl::Status MemorySaver::Emit(uint64_t page, const char* bytes, uint64_t count) {
  auto is_zero = [&](uint64_t i) { return !increment_ && !over_image_ && IsZero(bytes + i * kPageBytes, kPageBytes); };
  for (uint64_t i = 0; i < count;) {
    if (is_zero(i)) {
      ++i;
      continue;
    }
    uint64_t next = i + 1;
    while (next < count && !is_zero(next)) ++next;
    STILL_RETURN_IF_ERROR(sink_->WriteRecord(PageRecord::kPages, (page + i) * kPageBytes, bytes + i * kPageBytes,
                                             static_cast<uint32_t>((next - i) * kPageBytes)));
    i = next;
  }
  board_.bytes_written = sink_->bytes();
  return absl::OkStatus();
}

absl::Status MemorySaver::EmitPieces() {
  std::vector<Piece> pieces;
  {
    std::lock_guard<std::mutex> lock(pieces_mutex_);
    pieces.swap(pieces_);
    pieces_bytes_ = 0;
  }
  pieces_room_.notify_all();
  for (const Piece& piece : pieces) STILL_RETURN_IF_ERROR(Emit(piece.page, piece.bytes.data(), 1));
  return absl::OkStatus();
}

absl::Status MemorySaver::SendDeviceState(const OwnedFd& device_state) {
  const off_t size = ::lseek(device_state.get(), 0, SEEK_CUR);
  if (size < 0) return ErrnoStatus(errno, "device state");
  std::string bytes(kMaxRecordBytes, '\0');
  for (uint64_t at = 0; at < static_cast<uint64_t>(size);) {
    const auto part = static_cast<uint32_t>(std::min<uint64_t>(bytes.size(), static_cast<uint64_t>(size) - at));
    STILL_RETURN_IF_ERROR(PReadExactly(device_state.get(), bytes.data(), part, at, "device state"));
    STILL_RETURN_IF_ERROR(sink_->WriteRecord(PageRecord::kDeviceState, 0, bytes.data(), part));
    at += part;
  }
  STILL_RETURN_IF_ERROR(sink_->WriteRecord(PageRecord::kEnd, 0, nullptr, 0));
  board_.bytes_written = sink_->bytes();
  return absl::OkStatus();
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
