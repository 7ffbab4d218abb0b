#include "tests/unit/session-memory/writing_process.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <new>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/unix_socket.h"

namespace still::testing {
namespace {

constexpr uint64_t kPage = session::kPageBytes;
constexpr absl::Duration kPatience = absl::Seconds(60);

uint64_t HotPage(uint64_t i) { return (i + 1) * WritingProcess::kHotEvery - 1; }
bool IsHot(uint64_t page) { return page % WritingProcess::kHotEvery == WritingProcess::kHotEvery - 1; }
uint64_t ColdWord(uint64_t page) { return page % 4 == 0 ? 0 : page * 0x9e3779b97f4a7c15; }

void Nap() {
  timespec time{.tv_sec = 0, .tv_nsec = 50'000};
  ::nanosleep(&time, nullptr);
}

int MakeUserfaultfd() {
  const int fd = static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK));
  if (fd >= 0) return fd;
  const int device = ::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
  return device < 0 ? -1 : ::ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
}

}  // namespace

void WritingProcess::Run(Control* control, Kind kind, int file, int socket) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  const int flags =
      kind == Kind::kAnonymous ? MAP_PRIVATE | MAP_ANONYMOUS : (kind == Kind::kShared ? MAP_SHARED : MAP_PRIVATE);
  auto* memory = static_cast<char*>(
      ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, flags, kind == Kind::kAnonymous ? -1 : file, 0));
  if (memory == MAP_FAILED) ::_exit(1);
  if (kind == Kind::kAnonymous) ::madvise(memory, kBytes, MADV_HUGEPAGE);
  // A private mapping's pages are the file's until they are written to: half of them stay so.
  for (uint64_t page = 0; page < kPages; page += kind == Kind::kPrivate ? 2 : 1) {
    if (IsHot(page)) continue;
    if (const uint64_t word = ColdWord(page); word != 0) std::memcpy(memory + page * kPage, &word, sizeof word);
  }
  const int descriptor = MakeUserfaultfd();
  if (descriptor < 0 ||
      !SendWithFd(socket, absl::string_view(reinterpret_cast<char*>(&memory), sizeof memory), descriptor).ok()) {
    ::_exit(2);
  }
  ::close(descriptor);
  for (uint64_t number = 1;; ++number) {
    while (control->pause) {
      if (const int64_t page = control->late_page.exchange(-1); page >= 0) {
        control->late_begun = true;
        char* at = memory + static_cast<uint64_t>(page) * kPage;
        if (control->late_zero) {
          std::memset(at, 0, kPage);
        } else {
          at[64] = 1;
        }
      }
      control->paused = true;
      Nap();
    }
    control->paused = false;
    char* hot = memory + HotPage(number % kHotPages) * kPage;
    std::memcpy(hot, &number, sizeof number);
    std::memcpy(hot + kPage - sizeof number, &number, sizeof number);
    control->written = number;
  }
}

absl::StatusOr<std::unique_ptr<WritingProcess>> WritingProcess::Start(Kind kind) {
  std::unique_ptr<WritingProcess> process(new WritingProcess);
  void* at = ::mmap(nullptr, sizeof(Control), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) return ErrnoStatus(errno, "mmap");
  process->control_ = new (at) Control;
  OwnedFd file(::memfd_create("memory", MFD_CLOEXEC));
  if (::ftruncate(file.get(), kBytes) != 0) return ErrnoStatus(errno, "ftruncate");
  if (kind == Kind::kPrivate) {
    const std::string image = Image();
    STILL_RETURN_IF_ERROR(WriteAll(file.get(), image.data(), image.size(), "image"));
  }
  STILL_ASSIGN_OR_RETURN(SocketPair pair, MakeSocketPair());
  const pid_t pid = ::fork();
  if (pid == 0) Run(process->control_, kind, file.get(), pair.second.get());
  if (pid < 0) return ErrnoStatus(errno, "fork");
  process->range_ = {.pid = pid, .bytes = kBytes};
  pair.second.Reset();
  STILL_RETURN_IF_ERROR(WaitReadable(pair.first.get(), kPatience, "the writing process"));
  STILL_ASSIGN_OR_RETURN(const size_t got, ReceiveWithFd(pair.first.get(), &process->range_.address,
                                                         sizeof process->range_.address, process->userfaultfd_));
  if (got != sizeof process->range_.address) return absl::UnavailableError("no userfaultfd");
  STILL_RETURN_IF_ERROR(session::NegotiateUserfaultfd(process->userfaultfd_.get()));
  return process;
}

WritingProcess::~WritingProcess() {
  if (range_.pid > 0) {
    ::kill(range_.pid, SIGKILL);
    ::waitpid(range_.pid, nullptr, 0);
  }
  if (control_ != nullptr) ::munmap(control_, sizeof *control_);
}

void WritingProcess::Pause() {
  control_->pause = true;
  while (!control_->paused) Nap();
}

void WritingProcess::Resume() { control_->pause = false; }

uint64_t WritingProcess::written() const { return control_->written; }

bool WritingProcess::GetsOn(uint64_t writes) const {
  const uint64_t wanted = written() + writes;
  const absl::Duration end = Clock::Real().Monotonic() + kPatience;
  while (written() < wanted && Clock::Real().Monotonic() < end) Nap();
  return written() >= wanted;
}

void WritingProcess::ZeroInPause(uint64_t page) {
  control_->late_zero = true;
  WriteInPause(page);
}

void WritingProcess::WriteInPause(uint64_t page) {
  control_->late_begun = false;
  control_->late_page = static_cast<int64_t>(page);
  while (!control_->late_begun) Nap();
}

std::string WritingProcess::Image() {
  std::string image(kBytes, '\0');
  for (uint64_t page = 0; page < kPages; ++page) {
    const uint64_t word = ColdWord(page);
    if (!IsHot(page)) std::memcpy(image.data() + page * kPage, &word, sizeof word);
  }
  return image;
}

std::string WritingProcess::WhatIsWrong(const std::string& memory, uint64_t at) const {
  if (memory.size() != kBytes) return absl::StrCat(memory.size(), " bytes");
  int wrong = 0;
  std::string first;
  auto expect = [&](uint64_t page, uint64_t offset, uint64_t expected) {
    uint64_t word;
    std::memcpy(&word, memory.data() + page * kPage + offset, sizeof word);
    if (word == expected) return;
    if (wrong++ == 0) first = absl::StrCat("page ", page, " holds ", word, " in place of ", expected);
  };
  for (uint64_t i = 0; i < kHotPages; ++i) {
    // The greatest number up to `at` that goes to this page; 0: none has.
    const uint64_t newest = at < i ? 0 : at - (at - i) % kHotPages;
    expect(HotPage(i), 0, newest);
    expect(HotPage(i), kPage - sizeof(uint64_t), newest);
  }
  for (uint64_t page = 0; page < kPages; ++page) {
    if (!IsHot(page)) expect(page, 0, ColdWord(page));
  }
  return wrong == 0 ? "" : absl::StrCat(wrong, " words are wrong; ", first);
}

}  // namespace still::testing
