// MemorySaver: saves the memory of a running machine as it was at one instant, from outside, while the machine runs on.
// The heart of the memory engine; runs in a process of its own (still-memory). docs/memory.md explains it from the ground.
//
//   Arm                 the machine runs: every page is protected; a write notes its page as open and goes on
//   Round               the machine runs: what is open is protected again. Two or three, until few are
//   Protect             the machine stands still: what is open is protected again. This is the point
//   Save                the machine runs: a write waits until its page has been copied, and a copier goes over all pages
//   Finish              blocks until everything is in the sink
//
// With tracking the memory stays protected after that: a write is noted as open and as *written since the last point*, and the
// next save, from Arm on, can be an increment, of what was written. Several saves may follow one another so; the first that fails
// ends it.
//
// Invariants
//   - A page is lifted only when it need not be saved (any more), and only after it was noted as open; before the first point together
//     with its neighbours.
//   - Whoever turns a page from kWanted to kBeingCopied copies it, once.
//   - A page that is open in the pause has been noted: `stop` returns only when no thread of the machine waits.
//   - Whatever fails, the machine's writes go on: memory is given free, and the point is lost.
//
// Calls come from one thread, in this order. Two threads of its own: one answers the machine's writes, one copies.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "base/fd.h"
#include "base/status.h"
#include "base/waker.h"
#include "session/memory/process_memory.h"
#include "session/memory/sink.h"
#include "session/memory/write_protection.h"

namespace still::session {

// What others see of an engine while it works; lies in memory that two processes share.
struct EngineBoard {
  // 0 until the machine's writes may wait; grows at least every 20 ms from then on.
  std::atomic<uint64_t> heartbeat{0};
  std::atomic<uint32_t> in_hand{0};    // Writes that have been read from the descriptor and not been answered.
  std::atomic<bool> cancelled{false};  // Set by others: give up.
  std::atomic<uint64_t> bytes_written{0};
};
static_assert(std::atomic<uint64_t>::is_always_lock_free && std::atomic<bool>::is_always_lock_free);

struct MemoryFigures {
  uint64_t reprotected_pages = 0;  // By the last round; in the end, in the pause.
  uint64_t protect_ns = 0;         // What that took.
  uint64_t rounds = 0;
  uint64_t faults = 0;       // Writes that were answered since Arm.
  uint64_t saved_early = 0;  // Pages that were copied because of a write.
};

// The kernel's wall clock. absl::Now() estimates it in each process by itself, and is off by some 10 us on a busy host.
absl::Time WallClock();
// Where it may not be had (CAP_SYS_NICE), everything works and is slower on a busy host.
void SetThreadNice(int nice);

class MemorySaver {
 public:
  struct Options {
    absl::Duration stall_limit = absl::Seconds(1);  // Sink's.
    // Copies of written pages that may wait for the sink. Beyond it a write waits until there is room.
    uint64_t max_waiting_bytes = 64 << 20;
    // Leaves out every so-manieth page of the protection in the pause: tests show by it that they can fail.
    uint32_t leave_out = 0;
  };

  static absl::StatusOr<std::unique_ptr<MemorySaver>> Create(OwnedFd userfaultfd, const MemoryRange& range,
                                                             EngineBoard& board, Options options);
  // Gives the memory free.
  ~MemorySaver();

  enum class Content {
    kAll,
    kAllBeside,  // All, and the point that increments build on stays where it is: for somebody who has not that point.
    kIncrement,  // What was written since the last point. FAILED_PRECONDITION without tracking.
  };
  struct Wish {
    Content content = Content::kAll;
    bool track = false;
    // The memory is a private mapping of an image that the reader has: of all, only what differs from it is saved.
    bool over_image = false;
  };
  absl::Status Arm(OwnedFd sink, const Wish& wish);
  // The number of runs of pages that were open.
  absl::StatusOr<uint64_t> Round();
  // The one just before the pause.
  absl::Status LastRound();
  absl::Status Protect();
  // `resumed`: when the machine ran again, by the wall clock. ABORTED: something wrote to its memory between Protect and then, so that memory and
  // devices are not of one instant.
  absl::Status Save(absl::Time resumed);
  // `device_state`: a file, from its beginning to its offset. On an error, and without tracking, memory is free then.
  absl::Status Finish(const OwnedFd& device_state);

  const MemoryFigures& figures() const { return figures_; }

 private:
  enum class Phase { kIdle, kNoting, kSealed, kSaving, kAbandoned };
  enum PageState : uint8_t { kSaved = 0, kWanted = 1, kBeingCopied = 2 };
  struct Piece {
    uint64_t page;  // The first.
    std::string bytes;
  };
  struct PageRun {
    uint64_t page;
    uint64_t count;
  };

  MemorySaver(OwnedFd userfaultfd, ProcessMemory memory, EngineBoard& board, Options options, Waker stop);

  using PageStates = std::atomic<uint8_t>;

  std::unique_ptr<PageStates[]> MakeStates(PageState state) const;
  absl::Status ArmAll();
  uint64_t pages() const { return memory_.range().bytes / kPageBytes; }
  void AnswerLoop();
  void Answer(std::vector<uint64_t>& written);
  void LiftRun(uint64_t page, uint64_t count);
  void Note(const PageRun& run);
  void SaveWritten(uint64_t page, uint64_t count);
  uint64_t Claim(uint64_t begin, uint64_t end);
  absl::StatusOr<uint64_t> ProtectOpen(bool in_pause);
  bool Seal();
  absl::Status CopyAll();
  absl::Status CopyAndLift(uint64_t begin, uint64_t end, std::string& buffer);
  absl::Status LeaveOutImage(uint64_t begin, uint64_t end);
  absl::Status CopyChunk(uint64_t begin, uint64_t end, std::string& buffer);
  absl::Status Emit(uint64_t page, const char* bytes, uint64_t count);
  absl::Status EmitPieces();
  absl::Status SendDeviceState(const OwnedFd& device_state);
  // Why it was abandoned, or is to be.
  absl::Status CheckAlive();
  // The machine's writes go on, whatever was to be saved.
  void Abandon(const absl::Status& why);

  const OwnedFd userfaultfd_;
  const ProcessMemory memory_;
  const WriteProtection protection_;
  EngineBoard& board_;
  const Options options_;
  const Waker stop_;
  std::optional<Sink> sink_;
  bool registered_ = false;
  bool increment_ = false;
  bool beside_ = false;
  bool over_image_ = false;
  std::atomic<bool> track_{false};
  std::atomic<Phase> phase_{Phase::kIdle};
  // A PageState for each page: of the save that is under way, and of the next increment. Changed by both threads; which is which
  // changes in the pause only. All kSaved between two saves.
  std::unique_ptr<PageStates[]> current_;
  std::unique_ptr<PageStates[]> written_;
  std::unique_ptr<PageStates[]> all_;  // For a save of all memory; made before the pause.
  std::atomic<PageStates*> states_{nullptr};
  std::atomic<PageStates*> since_point_{nullptr};
  std::mutex open_mutex_;
  std::vector<PageRun> open_;  // What was lifted since it was last protected; may overlap. Under open_mutex_.
  // The neighbours of a written page are lifted with it, where nobody counts pages.
  std::atomic<uint64_t> lift_pages_{1};
  std::vector<PageRun> hot_;          // What was open at the last round; in the end, in the pause.
  std::vector<absl::Time> in_pause_;  // When writes came while kSealed. Under open_mutex_.
  std::mutex pieces_mutex_;
  std::condition_variable pieces_room_;
  std::vector<Piece> pieces_;  // Copies that wait for the copier. Under pieces_mutex_.
  uint64_t pieces_bytes_ = 0;  // Under pieces_mutex_.
  std::mutex failure_mutex_;
  absl::Status failure_;  // Why it was abandoned. Under failure_mutex_.
  std::atomic<uint64_t> faults_{0};
  std::atomic<uint64_t> saved_early_{0};
  MemoryFigures figures_;
  absl::Status copied_;  // The copier's result.
  std::thread answerer_;
  std::thread copier_;
};

}  // namespace still::session
