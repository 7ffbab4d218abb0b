// What is preloaded into a hypervisor opens the descriptors that it was given where the kernel would ask for permission
// again. This test itself, started once more with the library, stands for the hypervisor.
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/process.h"
#include "gtest/gtest.h"
#include "session/vsock/preload_library.h"

namespace still::session {
namespace {

constexpr char kGiven[] = "STILL_GIVEN_TEST_FD";

std::string GivenName() {
  const char* fd = ::getenv(kGiven);
  return fd == nullptr ? "" : absl::StrCat("/proc/self/fd/", fd);
}

std::string ReadAll(int fd) {
  char text[64] = {};
  return ::pread(fd, text, sizeof text - 1, 0) < 0 ? "unreadable" : text;
}

// Runs as the hypervisor.
TEST(DISABLED_GivenFiles, AsTheHypervisorSeesThem) {
  const std::string name = GivenName();
  ASSERT_NE(name, "");
  OwnedFd opened(::open(name.c_str(), O_RDWR | O_CLOEXEC));
  ASSERT_TRUE(opened.valid());
  EXPECT_EQ(ReadAll(opened.get()), "given\n");
  EXPECT_EQ(::access(name.c_str(), R_OK), 0);
  for (int time = 0; time < 2; ++time) {
    FILE* stream = ::fopen(name.c_str(), "rb");
    ASSERT_NE(stream, nullptr);
    char line[64] = {};
    EXPECT_NE(::fgets(line, sizeof line, stream), nullptr) << "it begins at its beginning each time";
    EXPECT_STREQ(line, "given\n");
    ::fclose(stream);
  }
  char first = 0;
  OwnedFd again(::open(name.c_str(), O_RDONLY | O_CLOEXEC));
  EXPECT_EQ(::read(again.get(), &first, 1), 1);
  EXPECT_EQ(first, 'g') << "also when a stream has read it before";
  // It was given for reading: asking for more gets no more.
  EXPECT_LT(::write(opened.get(), "x", 1), 0);
  EXPECT_EQ(errno, EBADF);
  // Names of files are names of files, also of such.
  EXPECT_LT(::open("/proc/self/fd/4711", O_RDONLY), 0);
  EXPECT_LT(::open(absl::StrCat(name, "/file").c_str(), O_RDONLY), 0);
  EXPECT_LT(::open("/proc/self/fd/", O_WRONLY), 0);
  EXPECT_LT(::access("/no/such/file", R_OK), 0);
  OwnedFd kvm(::open("/dev/kvm", O_RDWR));
  EXPECT_EQ(ReadAll(kvm.get()), "given\n") << "STILL_KVM_FD";
}

TEST(GivenFiles, AreOpenedWithoutAskingForPermissionAgain) {
  absl::StatusOr<std::string> library = FindPreloadLibrary();
  ASSERT_TRUE(library.ok()) << library.status();
  std::string path = JoinPath(::testing::TempDir(), "still-given-XXXXXX");
  OwnedFd made(::mkstemp(path.data()));
  ASSERT_TRUE(made.valid());
  ASSERT_EQ(::write(made.get(), "given\n", 6), 6);
  absl::StatusOr<OwnedFd> given = OpenFile(path, O_RDONLY);
  ASSERT_TRUE(given.ok());
  ASSERT_EQ(::chmod(path.c_str(), 0), 0);
  const std::string number = absl::StrCat(given->get());
  ProcessOptions hypervisor{
      .argv = {"/proc/self/exe", "--gtest_filter=DISABLED_GivenFiles.*", "--gtest_also_run_disabled_tests"},
      .environment = {PreloadVariable(*library), {kGiven, number}, {"STILL_KVM_FD", number}},
      .inherited_fds = {given->get()}};
  if (::geteuid() == 0) hypervisor.user = ProcessUser{.uid = 1900000001, .gid = 1900000001};
  auto with = RunCommand(hypervisor, absl::Seconds(60));
  hypervisor.environment[0].second = "";
  auto without = RunCommand(hypervisor, absl::Seconds(60));
  EXPECT_TRUE(RemoveFile(path).ok());
  ASSERT_TRUE(with.ok()) << with.status();
  EXPECT_TRUE(with->exit.ok()) << with->stdout_text << with->stderr_text;
  ASSERT_TRUE(without.ok()) << without.status();
  EXPECT_FALSE(without->exit.ok()) << "the file is nobody's to open";
}

}  // namespace
}  // namespace still::session
