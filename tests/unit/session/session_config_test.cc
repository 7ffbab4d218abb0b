#include "session/session_config.h"

#include <fcntl.h>
#include <stdlib.h>

#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace still::session {
namespace {

using ::testing::HasSubstr;

class SessionConfigTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = JoinPath(::testing::TempDir(), "still-config-XXXXXX");
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
    config_.set_name("web-1");
    config_.mutable_machine()->set_vcpus(1);
    config_.mutable_machine()->set_memory_bytes(256 << 20);
    AddDisk("vda", "raw", std::string(512, 'd'));
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(directory_).ok()); }

  void AddDisk(const std::string& name, const std::string& format, const std::string& content) {
    sessionpb::DiskFile& disk = *config_.add_disks();
    disk.set_name(name);
    disk.set_format(format);
    disk.set_path(JoinPath(directory_, name));
    ASSERT_TRUE(WriteFileAtomically(disk.path(), content).ok());
    config_.mutable_machine()->add_disks()->set_name(name);
  }
  absl::Status Validate() { return ValidateConfig(config_, /*has_ram=*/false); }

  std::string directory_;
  sessionpb::SessionConfig config_;
};

TEST_F(SessionConfigTest, AcceptsWhatWorks) { EXPECT_TRUE(Validate().ok()) << Validate(); }

TEST_F(SessionConfigTest, RefusesNamesThatAreNoDnsLabels) {
  for (const char* name : {"", "-a", "A", "a/b", "..", "a b"}) EXPECT_FALSE(ValidateSessionName(name).ok()) << name;
  EXPECT_FALSE(ValidateSessionName(std::string(64, 'a')).ok());
  EXPECT_TRUE(ValidateSessionName(std::string(63, 'a')).ok());
}

TEST_F(SessionConfigTest, NamesTheMissingKernel) {
  config_.mutable_machine()->set_direct_kernel(true);
  config_.set_kernel("/no/such/vmlinux");
  EXPECT_EQ(Validate().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Validate().message(), HasSubstr("kernel /no/such/vmlinux"));
}

TEST_F(SessionConfigTest, RefusesADiskThatIsNotWhatItIsDeclaredToBe) {
  AddDisk("vdb", "qcow2", "not a qcow2 header");
  EXPECT_THAT(Validate().message(), HasSubstr("is not a qcow2 image"));
  config_.mutable_disks(1)->set_format("vmdk");
  EXPECT_THAT(Validate().message(), HasSubstr("use raw or qcow2"));
  config_.mutable_disks(1)->set_format("raw");
  EXPECT_THAT(Validate().message(), HasSubstr("18 bytes are not a number of sectors"));
}

// An overlay that was just made has 196,616 bytes.
TEST_F(SessionConfigTest, AQcow2FileNeedNotBeANumberOfSectors) {
  AddDisk("vdb", "qcow2", "QFI\xfb of nineteen by");
  absl::Status valid = Validate();
  EXPECT_TRUE(valid.ok()) << valid;
}

TEST_F(SessionConfigTest, RefusesDiskNamesThatASnapshotNeedsForItself) {
  AddDisk("ram", "raw", std::string(512, 'd'));
  EXPECT_THAT(Validate().message(), HasSubstr("disk name \"ram\""));
}

TEST_F(SessionConfigTest, RefusesSizesThatNoMachineHas) {
  config_.mutable_machine()->set_memory_bytes((256 << 20) + 4096);
  EXPECT_THAT(Validate().message(), HasSubstr("multiple of 2 MiB"));
  config_.mutable_machine()->set_memory_bytes(256 << 20);
  config_.mutable_machine()->set_vcpus(0);
  EXPECT_THAT(Validate().message(), HasSubstr("cpus"));
}

TEST_F(SessionConfigTest, SavedMemoryOnlyStartsThroughRestore) {
  config_.mutable_restore()->set_snapshot_id("x");
  EXPECT_THAT(Validate().message(), HasSubstr("still restore"));
}

TEST_F(SessionConfigTest, TheUsersCommandLineComesLast) {
  config_.mutable_machine()->set_cmdline("console=tty0 root=/dev/vda");
  EXPECT_EQ(AssembleCmdline(config_, 1024), "console=ttyS0 panic=-1 still.port=1024 console=tty0 root=/dev/vda");
  EXPECT_EQ(AssembleCmdline(config_, std::nullopt), "console=ttyS0 panic=-1 console=tty0 root=/dev/vda");
}

TEST_F(SessionConfigTest, AnUnknownHypervisorIsNamed) {
  EXPECT_THAT(HypervisorStarter("xen").status().message(), HasSubstr("\"xen\" is not known; there are: qemu, process"));
}

}  // namespace
}  // namespace still::session
