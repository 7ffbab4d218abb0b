#include "snapshot/hot_images.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <thread>

#include "base/clock.h"
#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace still::snapshot {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

constexpr uint64_t kSize = 1 << 20;

class HotImagesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = "/dev/shm/still-hot-test-XXXXXX";
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    options_ = {.directory = pattern, .limit_bytes = 4 * kSize, .wait = absl::Seconds(20)};
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(options_.directory).ok()); }

  // Fills with one word at the beginning, and counts.
  std::function<absl::Status(int)> Fill(const std::string& word) {
    return [this, word](int fd) {
      ++fills_;
      return PWriteAll(fd, word.data(), word.size(), 0, "test image");
    };
  }
  std::string Word(const HotImage& image, size_t size) {
    std::string word(size, '\0');
    EXPECT_TRUE(PReadExactly(image.fd.get(), word.data(), size, 0, "test image").ok());
    return word;
  }
  std::vector<std::string> Keys() {
    std::vector<std::string> keys;
    auto listed = HotImages(options_).List();
    EXPECT_TRUE(listed.ok()) << listed.status();
    for (const HotImageInfo& image : *listed) keys.push_back(image.key);
    return keys;
  }

  HotImageOptions options_;
  std::atomic<int> fills_ = 0;
};

TEST_F(HotImagesTest, ASecondUserFindsWhatTheFirstHasFilled) {
  HotImages images(options_);
  auto first = images.Get("a", kSize, Fill("one"));
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_TRUE(first->filled);
  auto second = images.Get("a", kSize, Fill("two"));
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_FALSE(second->filled);
  EXPECT_EQ(Word(*second, 3), "one");
  EXPECT_EQ(fills_, 1);
}

TEST_F(HotImagesTest, ManyThatAskAtOnceFillItOnce) {
  HotImages images(options_);
  std::vector<std::thread> threads;
  std::atomic<int> found = 0;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] {
      auto image = images.Get("a", kSize, [this](int fd) {
        Clock::Real().Sleep(absl::Milliseconds(50));  // So that the others come meanwhile.
        return Fill("one")(fd);
      });
      if (image.ok() && Word(*image, 3) == "one") ++found;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(found, 8);
  EXPECT_EQ(fills_, 1);
}

TEST_F(HotImagesTest, TheLongestUnusedIsEvictedFirstAndNeverOneInUse) {
  HotImages images(options_);
  auto held = images.Get("held", kSize, Fill("held"));
  ASSERT_TRUE(held.ok()) << held.status();
  for (const char* key : {"b", "c", "d"}) ASSERT_TRUE(images.Get(key, kSize, Fill(key)).ok());
  ASSERT_TRUE(images.Get("b", kSize, Fill("b")).ok());  // Used again: c is now the oldest.
  ASSERT_TRUE(images.Get("e", kSize, Fill("e")).ok());
  EXPECT_THAT(Keys(), ElementsAre("held", "d", "b", "e"));
  EXPECT_EQ(Word(*held, 4), "held");
}

TEST_F(HotImagesTest, WithoutRoomThatCouldBeMadeItSaysSo) {
  HotImages images(options_);
  auto held = images.Get("held", 3 * kSize, Fill("held"));
  ASSERT_TRUE(held.ok()) << held.status();
  absl::Status status = images.Get("b", 2 * kSize, Fill("b")).status();
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_THAT(status.message(), HasSubstr("3 MiB of 4 are in use"));
  EXPECT_THAT(Keys(), ElementsAre("held"));
}

TEST_F(HotImagesTest, AFillThatFailsLeavesNothing) {
  HotImages images(options_);
  absl::Status status = images.Get("a", kSize, [](int) { return absl::DataLossError("damaged"); }).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(Keys(), SizeIs(0));
  EXPECT_TRUE(images.Get("a", kSize, Fill("one")).ok());
}

// A process that dies in the middle: its image is not taken for whole, and does not stand in the way.
TEST_F(HotImagesTest, WhatADeadProcessHadNotFinishedIsMadeAnew) {
  pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    (void)HotImages(options_).Get("a", kSize, [](int fd) {
      (void)PWriteAll(fd, "half", 4, 0, "test image");
      ::_exit(0);
      return absl::OkStatus();
    });
    ::_exit(1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_EQ(status, 0);
  EXPECT_THAT(Keys(), ElementsAre("a"));
  auto image = HotImages(options_).Get("a", kSize, Fill("whole"));
  ASSERT_TRUE(image.ok()) << image.status();
  EXPECT_EQ(Word(*image, 5), "whole");
}

// The lock belongs to the descriptor that the hypervisor inherits: it is released by its death, and only by that.
TEST_F(HotImagesTest, AnImageIsInUseAsLongAsAnyProcessHoldsItsDescriptor) {
  HotImages images(options_);
  int pipe_fds[2];
  ASSERT_EQ(::pipe(pipe_fds), 0);
  pid_t child = -1;
  {
    auto image = images.Get("a", kSize, Fill("one"));
    ASSERT_TRUE(image.ok()) << image.status();
    child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      ::close(pipe_fds[1]);
      char byte;
      (void)!::read(pipe_fds[0], &byte, 1);
      ::_exit(0);
    }
  }
  EXPECT_EQ(images.DropUnused().value(), 0u);
  EXPECT_THAT(Keys(), ElementsAre("a"));
  ::close(pipe_fds[1]);
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  ::close(pipe_fds[0]);
  EXPECT_GT(images.DropUnused().value(), 0u);
  EXPECT_THAT(Keys(), SizeIs(0));
}

TEST_F(HotImagesTest, ADirectoryThatOthersCanWriteIsNotTrusted) {
  ASSERT_EQ(::chmod(options_.directory.c_str(), 0777), 0);
  absl::Status status = HotImages(options_).Get("a", kSize, Fill("one")).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_EQ(fills_, 0);
}

TEST_F(HotImagesTest, ADiskIsNoPlaceForMemory) {
  std::string pattern = "still-hot-test-XXXXXX";  // In the build directory: /tmp is a tmpfs on many machines.
  ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
  HotImageOptions options = options_;
  options.directory = std::filesystem::absolute(pattern).string();
  absl::Status status = HotImages(options).Get("a", kSize, Fill("one")).status();
  EXPECT_TRUE(RemoveTree(pattern).ok());
  EXPECT_THAT(status.message(), HasSubstr("not on a tmpfs"));
}

}  // namespace
}  // namespace still::snapshot
