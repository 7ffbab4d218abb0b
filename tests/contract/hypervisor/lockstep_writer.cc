#include "tests/contract/hypervisor/lockstep_writer.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/time/clock.h"
#include "base/check.h"

namespace still::testing {
namespace {

constexpr uint64_t kRecordBytes = 4096;
constexpr uint64_t kRecords = 64;
constexpr absl::Duration kPatience = absl::Seconds(60);

void ShortSleep() {
  timespec step{.tv_sec = 0, .tv_nsec = 200'000};
  ::nanosleep(&step, nullptr);
}

template <typename Condition>
bool Soon(Condition condition) {
  absl::Time end = absl::Now() + kPatience;
  while (!condition()) {
    if (absl::Now() > end) return false;
    absl::SleepFor(absl::Milliseconds(1));
  }
  return true;
}

}  // namespace

LockstepWriter::LockstepWriter(const std::string& first, const std::string& second) {
  void* shared = ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  STILL_CHECK(shared != MAP_FAILED);
  shared_ = new (shared) Shared{};
  pid_ = ::fork();
  STILL_CHECK(pid_ >= 0);
  if (pid_ == 0) Write(::open(first.c_str(), O_RDWR), ::open(second.c_str(), O_RDWR));
}

LockstepWriter::~LockstepWriter() {
  LeaveUninterruptible();
  ::kill(pid_, SIGKILL);
  while (::waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
  }
  ::munmap(shared_, sizeof(Shared));
}

// A function of its own: no variable of the caller may live across the vfork.
void LockstepWriter::WaitUninterruptibly() {
  // The parent of a vfork waits for its child in state D.
  if (::vfork() == 0) {
    shared_->inside = true;
    while (shared_->enter) ShortSleep();
    ::_exit(0);
  }
  ::wait(nullptr);
  shared_->inside = false;
}

void LockstepWriter::Write(int first, int second) {
  uint64_t record[kRecordBytes / sizeof(uint64_t)] = {};
  for (uint64_t n = 1;; ++n) {
    if (shared_->enter) WaitUninterruptibly();
    record[0] = n;
    auto offset = static_cast<off_t>(n % kRecords * kRecordBytes);
    if (::pwrite(first, record, sizeof record, offset) < 0 || ::pwrite(second, record, sizeof record, offset) < 0) {
      ::_exit(1);
    }
    shared_->written = n;
    if (n % 16 == 0) ShortSleep();  // A test machine has other things to do.
  }
}

bool LockstepWriter::GetsOn() const {
  uint64_t before = written();
  return Soon([&] { return written() > before + 3; });
}

void LockstepWriter::EnterUninterruptible() {
  shared_->enter = true;
  STILL_CHECK(Soon([&] { return shared_->inside.load(); }));
}

void LockstepWriter::LeaveUninterruptible() { shared_->enter = false; }

uint64_t NewestLockstepRecord(const std::string& image) {
  uint64_t newest = 0;
  for (uint64_t at = 0; at + kRecordBytes <= image.size() && at < kRecords * kRecordBytes; at += kRecordBytes) {
    uint64_t number;
    std::memcpy(&number, image.data() + at, sizeof number);
    newest = std::max(newest, number);
  }
  return newest;
}

}  // namespace still::testing
