// WritingProcess: a process that writes to its memory as a machine's processors do, stands still when it is told to, and
// whose memory at that moment is known exactly, from a number that it keeps elsewhere.
//
// Its memory: hot pages, over which it goes round and round, writing the number of the write; between them cold ones, which
// hold a pattern, or nothing (every fourth). Write n goes to hot page n % kHotPages. They are few, so that each is written again
// before a save has come to it: else a save could leave them unprotected and be right.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "base/fd.h"
#include "base/status.h"
#include "session/memory/memory_saver.h"

namespace still::testing {

class WritingProcess {
 public:
  enum class Kind { kAnonymous, kShared, kPrivate };
  static constexpr uint64_t kPages = 4096;
  static constexpr uint64_t kHotPages = 64;
  static constexpr uint64_t kHotEvery = kPages / kHotPages;  // The last of so many pages is hot.
  static constexpr uint64_t kBytes = kPages * session::kPageBytes;
  // Of a private mapping: the hot ones, and every fourth, which was written to with what the image has.
  static constexpr uint64_t kOwnPages = kHotPages + kPages / 4;

  static absl::StatusOr<std::unique_ptr<WritingProcess>> Start(Kind kind);
  ~WritingProcess();

  session::MemoryRange range() const { return range_; }
  pid_t pid() const { return range_.pid; }
  // Negotiated; the process has none of its own.
  const OwnedFd& userfaultfd() const { return userfaultfd_; }

  // No write is under way when it returns.
  void Pause();
  void Resume();
  // The number of the last write.
  uint64_t written() const;
  // Waits until it has made so many more writes; false when it does not get on.
  bool GetsOn(uint64_t writes = 1000) const;
  // While it stands still, it writes to this page all the same, as a device would. Returns when it has, or waits.
  void WriteInPause(uint64_t page);
  // The same, with nothing: the page is zero then.
  void ZeroInPause(uint64_t page);
  // What a private mapping is of.
  static std::string Image();
  // What is wrong with `memory`, which was saved when written() was `at`; empty: nothing.
  std::string WhatIsWrong(const std::string& memory, uint64_t at) const;

 private:
  struct Control {
    std::atomic<uint64_t> written{0};
    std::atomic<bool> pause{false};
    std::atomic<bool> paused{false};
    std::atomic<int64_t> late_page{-1};
    std::atomic<bool> late_zero{false};
    std::atomic<bool> late_begun{false};
  };
  WritingProcess() = default;
  [[noreturn]] static void Run(Control* control, Kind kind, int file, int socket);

  session::MemoryRange range_;
  OwnedFd userfaultfd_;
  Control* control_ = nullptr;
};

}  // namespace still::testing
