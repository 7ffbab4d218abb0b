// What writes to which disk, on a machine made of files.
#include "guest-agent/disk_survey.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/guest-agent/fakes.h"

namespace still::agent {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class DiskSurveyTest : public ::testing::Test {
 protected:
  void Put(const std::string& path, const std::string& content) {
    std::string full = directory_ / path;
    ASSERT_TRUE(MakeDirectories(full.substr(0, full.rfind('/'))).ok());
    ASSERT_TRUE(WriteFileAtomically(full, content).ok());
  }
  // A block device as sysfs shows it: its directory, and the links to it by name and by number.
  void AddDevice(const std::string& place, const std::string& number) {
    const std::string name = place.substr(place.rfind('/') + 1);
    Put(place + "/dev", number + "\n");
    for (const std::string& link : {"class/block/" + name, "dev/block/" + number}) {
      ASSERT_TRUE(MakeDirectories((directory_ / link).substr(0, (directory_ / link).rfind('/'))).ok());
      ASSERT_EQ(::symlink((directory_ / place).c_str(), (directory_ / link).c_str()), 0);
    }
  }
  void AddDisk(const std::string& name, const std::string& number, const std::string& pci) {
    const std::string place = absl::StrCat("devices/pci0000:00/", pci, "/virtio1/block/", name);
    AddDevice(place, number);
    Put(place + "/device/vendor", "0x1af4\n");
    Put(place + "/queue/iostats", "1\n");
    ASSERT_TRUE(MakeDirectories(directory_ / "block").ok());
    ASSERT_EQ(::symlink(absl::StrCat("../", place).c_str(), (directory_ / ("block/" + name)).c_str()), 0);
  }
  void AddPartition(const std::string& disk, const std::string& name, const std::string& number) {
    const std::string place = absl::StrCat("block/", disk, "/", name);
    AddDevice(place, number);
    Put(place + "/partition", "1\n");
  }
  void AddHolder(const std::string& lower, const std::string& upper) {
    Put(absl::StrCat("class/block/", lower, "/holders/", upper, "/dev"), "");
  }

  pb::Disk Describe(const std::string& table, std::set<DeviceId> frozen = {}) {
    survey_.mounts = *ParseMountTable(table);
    DiskFacts facts{
        .survey = survey_, .open = open_, .frozen = std::move(frozen), .clean = clean_, .foreign = foreign_};
    KernelDisks disks({.sysfs = directory_.path(),
                       .swaps = directory_ / "swaps",
                       .claimed = [this](const std::string& name) -> absl::StatusOr<bool> {
                         asked_.push_back(name);
                         return claimed_.contains(name);
                       }});
    report_ = disks.Describe(facts);
    EXPECT_EQ(report_.disks.size(), 1u);
    return report_.disks.empty() ? pb::Disk() : report_.disks[0];
  }
  static std::vector<std::string> Texts(const pb::Disk& disk) {
    std::vector<std::string> texts;
    for (const pb::DiskUse& use : disk.uses()) {
      texts.push_back(absl::StrCat(pb::DiskUse::State_Name(use.state()), " ", pb::DiskUse::Kind_Name(use.kind()), " ",
                                   use.device(), " ", use.name()));
    }
    return texts;
  }

  TempDir directory_;
  MountSurvey survey_;
  OpenForWriting open_;
  std::map<DeviceId, std::string> clean_;
  std::set<DeviceId> foreign_;
  std::set<std::string> claimed_;
  std::vector<std::string> asked_;
  DiskReport report_;
};

TEST_F(DiskSurveyTest, ADiskIsKnownByItsPlaceAndItsSerialNumber) {
  AddDisk("vda", "254:0", "0000:00:08.0");
  Put("block/vda/serial", "root-disk\n");
  pb::Disk disk = Describe("");
  EXPECT_EQ(disk.name(), "vda");
  EXPECT_EQ(disk.serial(), "root-disk");
  EXPECT_EQ(disk.pci_address(), "0000:00:08.0");
  EXPECT_THAT(disk.uses(), IsEmpty());
  EXPECT_TRUE(report_.watched.contains({254, 0}));  // Unused: what is written to it now is a surprise.
}

TEST_F(DiskSurveyTest, EveryPartitionHasItsOwnUse) {
  AddDisk("vda", "254:0", "0000:00:08.0");
  AddPartition("vda", "vda1", "254:1");
  AddPartition("vda", "vda2", "254:2");
  AddPartition("vda", "vda3", "254:3");
  AddPartition("vda", "vda4", "254:4");
  Put("swaps", absl::StrCat("Filename Type Size Used Priority\n/swap\\040file file 1024 0 -2\n"));
  clean_[{254, 1}] = "";
  pb::Disk disk = Describe(
      "1 0 254:2 / / rw - ext4 /dev/vda2 rw\n"
      "2 1 254:1 / /boot/efi rw - vfat /dev/vda1 rw\n"
      "3 1 254:3 / /usr rw - ext4 /dev/vda3 ro\n",
      {{254, 2}});
  EXPECT_THAT(Texts(disk), ElementsAre("CLEAN FILE_SYSTEM vda1 /boot/efi", "FROZEN FILE_SYSTEM vda2 /",
                                       "VOLATILE SWAP vda2 /swap file", "READ_ONLY FILE_SYSTEM vda3 /usr"));
  EXPECT_THAT(asked_, ElementsAre("vda4"));  // Only what has no known use is probed.
  EXPECT_TRUE(report_.watched.contains({254, 1}));
  EXPECT_TRUE(report_.watched.contains({254, 3})) << "it may be mounted for writing before the pause";
  EXPECT_TRUE(report_.watched.contains({254, 4}));
  EXPECT_FALSE(report_.watched.contains({254, 2}));
}

TEST_F(DiskSurveyTest, WhatIsFrozenAndTheDiskUnderItAreWatchedUnlessSwapWrites) {
  AddDisk("vda", "254:0", "0000:00:08.0");
  AddPartition("vda", "vda1", "254:1");
  AddPartition("vda", "vda2", "254:2");
  constexpr char kTable[] =
      "1 0 254:1 / / rw - ext4 /dev/vda1 rw\n"
      "2 1 254:2 / /srv rw - xfs /dev/vda2 rw\n";
  auto watched = [this] {
    std::vector<std::string> devices;
    for (const auto& [device, disks] : report_.watched_if_counted) devices.push_back(device.ToString());
    return devices;
  };
  Describe(kTable, {{254, 1}, {254, 2}});
  EXPECT_THAT(watched(), ElementsAre("254:0", "254:1", "254:2"));
  Put("swaps", "Filename Type Size Used Priority\n/srv/swap file 1024 0 -2\n");
  Describe(kTable, {{254, 1}, {254, 2}});
  EXPECT_THAT(watched(), ElementsAre("254:1"));
  Put("swaps", "");
  AddDevice("devices/virtual/block/md0", "9:0");
  AddHolder("vda2", "md0");
  Describe(kTable, {{254, 1}, {254, 2}});
  EXPECT_THAT(watched(), ElementsAre("254:1", "254:2")) << "md writes to its disks when nobody does";
}

TEST_F(DiskSurveyTest, WhatWasNotFrozenIsNotCovered) {
  AddDisk("vda", "254:0", "0000:00:08.0");
  constexpr char kTable[] = "1 0 254:0 / /data rw - vfat /dev/vda rw\n";
  EXPECT_THAT(Describe(kTable).uses(0).detail(), HasSubstr("was not frozen"));
  foreign_ = {{254, 0}};
  EXPECT_THAT(Describe(kTable).uses(0).detail(), HasSubstr("already frozen by somebody else"));
  clean_[{254, 0}] = "vi (7) has a file on it open for writing";
  EXPECT_EQ(Describe(kTable).uses(0).detail(), "cannot freeze, and vi (7) has a file on it open for writing");
  EXPECT_EQ(Describe(kTable).uses(0).state(), pb::DiskUse::NOT_COVERED);
}

TEST_F(DiskSurveyTest, MappingsAreFollowedToWhatLiesOnThem) {
  AddDisk("vda", "254:0", "0000:00:08.0");
  AddPartition("vda", "vda1", "254:1");
  AddDevice("devices/virtual/block/dm-0", "253:0");
  AddDevice("devices/virtual/block/dm-1", "253:1");
  AddDevice("devices/virtual/block/dm-2", "253:2");
  AddHolder("vda1", "dm-0");
  AddHolder("dm-0", "dm-1");
  AddHolder("dm-0", "dm-2");
  claimed_ = {"dm-2"};
  pb::Disk disk = Describe("1 0 253:1 / / rw - xfs /dev/mapper/root rw\n", {{253, 1}});
  EXPECT_THAT(Texts(disk), ElementsAre("FROZEN FILE_SYSTEM dm-1 /", "NOT_COVERED CLAIMED dm-2 "));
}

TEST_F(DiskSurveyTest, ALoopsFileSystemCountsForTheDiskOfItsFile) {
  AddDisk("vda", "254:0", "0000:00:08.0");
  survey_.lies_on[{7, 0}] = {{254, 0}};
  pb::Disk disk = Describe(
      "1 0 254:0 / / rw - ext4 /dev/vda rw\n"
      "2 1 7:0 / /inner rw - vfat /dev/loop0 rw\n",
      {{254, 0}});
  EXPECT_THAT(Texts(disk), ElementsAre("FROZEN FILE_SYSTEM vda /", "NOT_COVERED FILE_SYSTEM vda /inner"));
}

TEST_F(DiskSurveyTest, AProcessThatHasTheDeviceOpenForWritingIsNamed) {
  AddDisk("vda", "254:0", "0000:00:08.0");
  open_.devices[{254, 0}] = "dd (412)";
  pb::Disk disk = Describe("1 0 254:0 / / rw - ext4 /dev/vda rw\n", {{254, 0}});
  EXPECT_THAT(Texts(disk), ElementsAre("NOT_COVERED OPENED vda dd (412)", "FROZEN FILE_SYSTEM vda /"));
}

TEST_F(DiskSurveyTest, WhatCouldNotBeLookedAtIsNotCovered) {
  AddDisk("vda", "254:0", "0000:00:08.0");
  open_.incomplete = "too many open files";
  survey_.incomplete = "too many namespaces";
  pb::Disk disk = Describe("");
  ASSERT_EQ(disk.uses_size(), 2);
  EXPECT_EQ(disk.uses(0).detail(), "too many open files");
  EXPECT_EQ(disk.uses(1).state(), pb::DiskUse::NOT_COVERED);
}

// An answer has room for 2,048 of them.
TEST_F(DiskSurveyTest, ANameThatIsNoTextIsNoLongerThanOthers) {
  AddDisk("vda", "254:0", "0000:00:08.0");
  const std::string table = absl::StrCat("1 0 254:0 / /", std::string(900, '\xff'), " rw - ext4 /dev/vda rw\n");
  pb::Disk disk = Describe(table, {{254, 0}});
  ASSERT_EQ(disk.uses_size(), 1);
  EXPECT_LE(disk.uses(0).name().size(), 256u);
  EXPECT_THAT(disk.uses(0).name(), AllOf(HasSubstr("\\xff"), HasSubstr("...")));
}

TEST_F(DiskSurveyTest, AGuestOfManyUsesIsCutWithAWordAboutIt) {
  AddDisk("vda", "254:0", "0000:00:08.0");
  std::string table;
  std::set<DeviceId> frozen;
  for (unsigned i = 1; i <= 400; ++i) {
    AddPartition("vda", absl::StrCat("vda", i), absl::StrCat("259:", i));
    absl::StrAppend(&table, i, " 0 259:", i, " / /m", i, " rw - ext4 /dev/vda", i, " rw\n");
    frozen.insert({259, i});
  }
  pb::Disk disk = Describe(table, frozen);
  EXPECT_EQ(disk.uses_size(), 256);
  EXPECT_EQ(disk.uses(254).state(), pb::DiskUse::FROZEN);
  EXPECT_EQ(disk.uses(255).state(), pb::DiskUse::NOT_COVERED);
  EXPECT_THAT(disk.uses(255).detail(), HasSubstr("more uses"));
}

TEST_F(DiskSurveyTest, WritesAreCountedWhereTheKernelCountsThem) {
  AddDisk("vda", "254:0", "0000:00:08.0");
  AddPartition("vda", "vda1", "254:1");
  KernelDisks disks({.sysfs = directory_.path()});
  EXPECT_EQ(disks.Writes({254, 1}), std::nullopt);
  Put("block/vda/vda1/stat", "   10 0 80 5   21 0 168 9   0 14 14   2 0 8 1   0 0\n");
  Put("block/vda/vda1/inflight", "       3        0\n");
  // dev/block/254:1 leads to the partition, whose queue is its disk's.
  EXPECT_EQ(disks.Writes({254, 1}), 23u);
  Put("block/vda/vda1/inflight", "       0        1\n");
  EXPECT_EQ(disks.Writes({254, 1}), std::nullopt);
  Put("block/vda/vda1/inflight", "       0        0\n");
  Put("block/vda/queue/iostats", "0\n");
  EXPECT_EQ(disks.Writes({254, 1}), std::nullopt);
}

// Of files: /proc as it shows a process that has closed what it has mapped.
TEST(OpenFilesTest, WhatIsMappedSharedAndWritableIsFoundWithoutADescriptor) {
  TempDir proc;
  TempDir target;
  struct stat status {};
  ASSERT_EQ(::stat(target.path().c_str(), &status), 0);
  const DeviceId device{major(status.st_dev), minor(status.st_dev)};
  ASSERT_TRUE(WriteFileAtomically(target / "file", "x").ok());
  ASSERT_TRUE(MakeDirectories(proc / "7/map_files").ok());
  ASSERT_TRUE(MakeDirectories(proc / "8").ok());
  ASSERT_TRUE(WriteFileAtomically(proc / "7/comm", "editor\n").ok());
  ASSERT_TRUE(WriteFileAtomically(proc / "8/maps", "").ok());  // A kernel thread.
  ASSERT_EQ(::symlink((target / "file").c_str(), (proc / "7/map_files/400000-401000").c_str()), 0);
  auto found_with = [&](const std::string& rights) {
    EXPECT_TRUE(WriteFileAtomically(proc / "7/maps", absl::StrCat("00400000-00401000 ", rights,
                                                                  " 00000000 fe:00 97     /a file\n"
                                                                  "7f00-7f01 rw-s 00000000 00:01 3  /gone\n"
                                                                  "7f02-7f03 rw-p 00000000 00:00 0 \n"))
                    .ok());
    return FindMappedForWriting(proc.path());
  };
  OpenForWriting found = found_with("rw-s");
  EXPECT_EQ(found.file_systems[device], "editor (7)");
  EXPECT_THAT(found.incomplete, IsEmpty());
  for (const char* rights : {"r--s", "rw-p"}) EXPECT_THAT(found_with(rights).file_systems, IsEmpty()) << rights;
  // Not to be looked at is not the same as nothing.
  ASSERT_TRUE(RemoveTree(proc / "7/map_files").ok());
  ASSERT_TRUE(WriteFileAtomically(proc / "7/map_files", "").ok());
  EXPECT_THAT(found_with("rw-s").incomplete, HasSubstr("the mappings of editor (7)"));
}

// As of a process whose thread waits in a page fault.
TEST(OpenFilesTest, ATableOfMappingsThatDoesNotAnswerDelaysNobody) {
  TempDir proc;
  ASSERT_TRUE(MakeDirectories(proc / "7").ok());
  ASSERT_TRUE(WriteFileAtomically(proc / "7/comm", "stuck\n").ok());
  ASSERT_EQ(::mkfifo((proc / "7/maps").c_str(), 0600), 0);
  OpenForWriting found = FindMappedForWriting(proc.path(), absl::Milliseconds(50));
  EXPECT_EQ(found.incomplete, "the mappings of stuck (7): no answer");
  EXPECT_THAT(FindMappedForWriting(proc.path(), absl::Milliseconds(50)).incomplete, HasSubstr("an earlier look"));
  absl::StatusOr<OwnedFd> end = OpenFile(proc / "7/maps", O_WRONLY);  // The thread that waits goes on.
  ASSERT_TRUE(end.ok()) << end.status();
  end->Reset();
  EXPECT_TRUE(Eventually([&] {
    ::unlink((proc / "7/maps").c_str());
    return FindMappedForWriting(proc.path()).incomplete.empty();
  }));
}

TEST(OpenFilesTest, WhoeverHasAFileOpenForWritingIsFound) {
  TempDir directory;
  struct stat status {};
  ASSERT_EQ(::stat(directory.path().c_str(), &status), 0);
  const DeviceId device{major(status.st_dev), minor(status.st_dev)};
  absl::StatusOr<OwnedFd> fd = OpenFile(directory / "file", O_RDWR | O_CREAT);
  ASSERT_TRUE(fd.ok());
  OpenForWriting found = FindOpenForWriting();
  EXPECT_TRUE(found.file_systems.contains(device));
  EXPECT_THAT(found.incomplete, IsEmpty());
}

}  // namespace
}  // namespace still::agent
