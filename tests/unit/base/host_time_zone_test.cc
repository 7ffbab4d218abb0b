#include "base/host_time_zone.h"

#include <stdlib.h>
#include <unistd.h>

#include <string>

#include "base/file.h"
#include "gtest/gtest.h"

namespace still {
namespace {

constexpr size_t kLargest = 1 << 20;
const std::string kBerlin = "/usr/share/zoneinfo/Europe/Berlin";
const std::string kTokyo = "/usr/share/zoneinfo/Asia/Tokyo";

class HostTimeZoneTest : public ::testing::Test {
 protected:
  void SetUp() override {
    dir_ = JoinPath(::testing::TempDir(), "still-zone-XXXXXX");
    ASSERT_NE(::mkdtemp(dir_.data()), nullptr);
    file_ = JoinPath(dir_, "localtime");
    if (const char* given = ::getenv("TZ"); given != nullptr) before_ = given;
    ::unsetenv("TZ");
  }
  void TearDown() override {
    if (!before_.empty()) ::setenv("TZ", before_.c_str(), 1);
    EXPECT_TRUE(RemoveTree(dir_).ok());
  }
  void Link(const std::string& zone) {
    ::unlink(file_.c_str());
    ASSERT_EQ(::symlink(zone.c_str(), file_.c_str()), 0);
  }
  void Copy(const std::string& zone) {
    absl::StatusOr<std::string> bytes = ReadFile(zone, kLargest);
    ASSERT_TRUE(bytes.ok()) << bytes.status();
    ASSERT_TRUE(WriteFileAtomically(file_, *bytes).ok());
  }
  static int HoursFromUtc(HostTimeZone& zone) { return zone.Now().At(absl::UnixEpoch()).offset / 3600; }

  std::string dir_;
  std::string file_;
  std::string before_;
};

TEST_F(HostTimeZoneTest, ALinkThatChangesIsReadAnew) {
  HostTimeZone zone(file_);
  EXPECT_EQ(HoursFromUtc(zone), 0) << "there is no file";
  Link(kBerlin);
  EXPECT_EQ(zone.Now().name(), "Europe/Berlin");
  Link(kTokyo);
  EXPECT_EQ(zone.Now().name(), "Asia/Tokyo");
  Link(kBerlin);
  EXPECT_EQ(zone.Now().name(), "Europe/Berlin");
}

TEST_F(HostTimeZoneTest, ACopyThatChangesIsReadAnew) {
  HostTimeZone zone(file_);
  for (int round = 0; round < 2; ++round) {
    Copy(kBerlin);
    EXPECT_EQ(HoursFromUtc(zone), 1);
    Copy(kTokyo);
    EXPECT_EQ(HoursFromUtc(zone), 9);
  }
}

TEST_F(HostTimeZoneTest, TheEnvironmentComesFirst) {
  Link(kBerlin);
  HostTimeZone zone(file_);
  ::setenv("TZ", "Asia/Tokyo", 1);
  EXPECT_EQ(HoursFromUtc(zone), 9);
  ::setenv("TZ", (":" + kTokyo).c_str(), 1);
  EXPECT_EQ(HoursFromUtc(zone), 9);
  ::setenv("TZ", "Nowhere/AtAll", 1);
  EXPECT_EQ(HoursFromUtc(zone), 0);
  ::unsetenv("TZ");
  EXPECT_EQ(HoursFromUtc(zone), 1);
}

}  // namespace
}  // namespace still
