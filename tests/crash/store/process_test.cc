// Real processes on a real directory: killed with SIGKILL at any moment, and several at the same time.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "tests/unit/store/test_repository.h"

namespace still::store {
namespace {

constexpr size_t kMiB = 1024 * 1024;

std::string ContentOf(uint64_t seed) { return ChangeImage(MakeImage(1, 8 * kMiB), seed, 20); }

// Runs `work` in a process of its own. Only while this one has no threads.
pid_t Fork(const std::function<bool()>& work) {
  const pid_t child = ::fork();
  if (child != 0) return child;
  ::_exit(work() ? 0 : 1);
}

int WaitFor(pid_t child) {
  int status = 0;
  STILL_CHECK(::waitpid(child, &status, 0) == child);
  return status;
}

bool StoreOne(const std::string& path, uint64_t seed) {
  auto repository = Repository::Open({.path = path, .workers = 2});
  if (!repository.ok()) return false;
  auto stored = StoreImage(**repository, absl::StrCat("seed-", seed), ContentOf(seed));
  if (!stored.ok()) std::fprintf(stderr, "store: %s\n", stored.status().ToString().c_str());
  return stored.ok();
}

// Every listed snapshot is what it should be, and the repository verifies. Gives the number of snapshots.
size_t CheckAll(const std::string& path) {
  auto repository = MustOpen({.path = path, .workers = 2});
  if (repository == nullptr) return 0;
  auto snapshots = repository->ListSnapshots();
  EXPECT_TRUE(snapshots.ok()) << snapshots.status();
  for (const manifest::Snapshot& snapshot : *snapshots) {
    auto content = LoadImage(*repository, snapshot.name());
    EXPECT_TRUE(content.ok()) << content.status();
    const uint64_t seed = std::stoull(snapshot.name().substr(5));
    EXPECT_TRUE(content.ok() && *content == ContentOf(seed)) << snapshot.name();
  }
  auto report = repository->Verify({.read_data_percent = 100});
  EXPECT_TRUE(report.ok()) << report.status();
  EXPECT_TRUE(!report.ok() || report->ok()) << report->problems[0];
  return snapshots->size();
}

TEST(ProcessTest, CapturesKilledAtAnyMomentLeaveOnlyWholeSnapshots) {
  TemporaryDirectory directory;
  ASSERT_TRUE(Repository::Init({.path = directory.path()}).ok());
  ASSERT_EQ(WaitFor(Fork([&] { return StoreOne(directory.path(), 0); })), 0);
  std::mt19937_64 random(1);
  int killed = 0;
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    const pid_t child = Fork([&] { return StoreOne(directory.path(), seed); });
    Clock::Real().Sleep(absl::Milliseconds(5 + random() % 200));
    ::kill(child, SIGKILL);
    if (WIFSIGNALED(WaitFor(child))) ++killed;
  }
  EXPECT_GT(killed, 0);
  EXPECT_GE(CheckAll(directory.path()), 1);
  // The dead leave no lease that stops the sweep.
  auto repository = MustOpen({.path = directory.path()});
  auto report = repository->Prune({.grace = absl::ZeroDuration()});
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->packs_waiting, 0);
  repository.reset();
  EXPECT_GE(CheckAll(directory.path()), 1);
}

TEST(ProcessTest, ARebuildOfTheCatalogKilledAtAnyMomentLosesNothing) {
  TemporaryDirectory directory;
  ASSERT_TRUE(Repository::Init({.path = directory.path()}).ok());
  for (uint64_t seed : {0, 1}) ASSERT_EQ(WaitFor(Fork([&] { return StoreOne(directory.path(), seed); })), 0);
  std::mt19937_64 random(2);
  int killed = 0;
  for (int i = 0; i < 20; ++i) {
    const pid_t child =
        Fork([&] { return Repository::Open({.path = directory.path(), .workers = 1, .rebuild_catalog = true}).ok(); });
    Clock::Real().Sleep(absl::Milliseconds(random() % 40));
    ::kill(child, SIGKILL);
    if (WIFSIGNALED(WaitFor(child))) ++killed;
    ASSERT_EQ(WaitFor(Fork([&] {
                auto repository = Repository::Open({.path = directory.path(), .workers = 1});
                return repository.ok() && (*repository)->ListSnapshots()->size() == 2;
              })),
              0);
  }
  EXPECT_GT(killed, 0);
  EXPECT_EQ(CheckAll(directory.path()), 2);
}

bool PruneTimes(const std::string& path, int times) {
  auto repository = Repository::Open({.path = path, .workers = 1});
  for (int i = 0; repository.ok() && i < times; ++i) {
    auto snapshots = (*repository)->ListSnapshots();
    if (!snapshots.ok()) return false;
    // Forgets every second snapshot, so that there is something to prune.
    if (snapshots->size() > 2 && !(*repository)->Forget({snapshots->at(1).id()}).ok()) return false;
    auto report = (*repository)->Prune({.grace = absl::ZeroDuration(), .min_live_fraction = 0.9});
    if (!report.ok()) std::fprintf(stderr, "prune: %s\n", report.status().ToString().c_str());
    if (!report.ok()) return false;
  }
  return repository.ok();
}

bool VerifyTimes(const std::string& path, int times) {
  auto repository = Repository::Open({.path = path, .workers = 1});
  for (int i = 0; repository.ok() && i < times; ++i) {
    auto report = (*repository)->Verify({.read_data_percent = 100});
    if (!report.ok()) std::fprintf(stderr, "verify: %s\n", report.status().ToString().c_str());
    if (!report.ok()) return false;
  }
  return repository.ok();
}

TEST(ProcessTest, TwoCapturesAPruneAndAVerificationAtTheSameTime) {
  TemporaryDirectory directory;
  ASSERT_TRUE(Repository::Init({.path = directory.path()}).ok());
  ASSERT_TRUE(StoreOne(directory.path(), 0));
  std::vector<pid_t> children;
  for (uint64_t first : {100, 200}) {
    children.push_back(Fork([&, first] {
      for (uint64_t i = 0; i < 6; ++i) {
        if (!StoreOne(directory.path(), first + i)) return false;
      }
      return true;
    }));
  }
  children.push_back(Fork([&] { return PruneTimes(directory.path(), 5); }));
  children.push_back(Fork([&] { return VerifyTimes(directory.path(), 4); }));
  for (pid_t child : children) EXPECT_EQ(WaitFor(child), 0);
  EXPECT_GE(CheckAll(directory.path()), 6);
}

}  // namespace
}  // namespace still::store
