#include "session/hypervisor/qemu/ram_priming.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "gtest/gtest.h"
#include "tests/support/sanitizers.h"

namespace still::session {
namespace {

// Of a size that nothing else in the process has.
constexpr uint64_t kBytes = 37 << 20;
constexpr uint64_t kPages = kBytes / 4096;

// A process that has mapped a memory image as a restored VM has, and not touched it.
class Mapper {
 public:
  Mapper() {
    int fd = ::memfd_create("ram", MFD_CLOEXEC);
    EXPECT_EQ(::ftruncate(fd, kBytes), 0);
    int ready[2];
    EXPECT_EQ(::pipe(ready), 0);
    pid_ = ::fork();
    if (pid_ == 0) {
      void* ram = ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
      char byte = ram == MAP_FAILED ? 'f' : 'm';
      if (::write(ready[1], &byte, 1) != 1) ::_exit(1);
      for (;;) ::pause();
    }
    char byte = 0;
    EXPECT_EQ(::read(ready[0], &byte, 1), 1);
    EXPECT_EQ(byte, 'm');
    for (int end : {fd, ready[0], ready[1]}) ::close(end);
  }
  ~Mapper() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  pid_t pid() const { return pid_; }

 private:
  pid_t pid_;
};

// A sanitizer's own mappings may be of the size that is looked for, and are counted too.
constexpr bool kOwnMappings = still::testing::kThreadSanitizer || still::testing::kAddressSanitizer;

TEST(RamPriming, TouchesEveryAbsentPageOnce) {
  if (kOwnMappings) return;
  Mapper mapper;
  auto touched = PrimeRam(mapper.pid(), kBytes);
  ASSERT_TRUE(touched.ok()) << touched.status();
  EXPECT_EQ(touched->touched_pages, kPages);
  touched = PrimeRam(mapper.pid(), kBytes);
  ASSERT_TRUE(touched.ok()) << touched.status();
  EXPECT_EQ(touched->touched_pages, 0u) << "they were present";
}

TEST(RamPriming, SmallerMappingsAreNoneOfItsBusiness) {
  if (kOwnMappings) return;
  Mapper mapper;
  auto touched = PrimeRam(mapper.pid(), kBytes * 4);
  ASSERT_TRUE(touched.ok()) << touched.status();
  EXPECT_EQ(touched->touched_pages, 0u);
}

TEST(RamPriming, AProcessThatIsGoneIsAnError) {
  pid_t pid;
  {
    Mapper mapper;
    pid = mapper.pid();
  }
  EXPECT_FALSE(PrimeRam(pid, kBytes).ok());
}

}  // namespace
}  // namespace still::session
