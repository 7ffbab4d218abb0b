// A process as a VMM without an interface would be: it holds two disk files open and writes numbered records to them in
// lockstep, the first file first. So in images of one instant  second <= first <= second + 1.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <string>

namespace still::testing {

class LockstepWriter {
 public:
  // Forks; the files exist. At best from a process without threads.
  LockstepWriter(const std::string& first, const std::string& second);
  ~LockstepWriter();  // Kills it.
  LockstepWriter(const LockstepWriter&) = delete;
  LockstepWriter& operator=(const LockstepWriter&) = delete;

  pid_t pid() const { return pid_; }
  uint64_t written() const { return shared_->written; }
  // True when it writes within the patience of a test.
  bool GetsOn() const;
  // Puts it into a wait that no stop signal ends (state D, as in a slow fsync), and out of it.
  void EnterUninterruptible();
  void LeaveUninterruptible();

 private:
  struct Shared {
    std::atomic<uint64_t> written;
    std::atomic<bool> enter;
    std::atomic<bool> inside;
  };
  [[gnu::noinline]] void WaitUninterruptibly();
  [[noreturn]] void Write(int first, int second);

  Shared* shared_;
  pid_t pid_;
};

// The newest record in an image of one of its files.
uint64_t NewestLockstepRecord(const std::string& image);

}  // namespace still::testing
