// The catalog's own writes: the process is killed (SIGKILL, half of a write done) at each of them, and the disk is full
// from each of them on, for every write of every operation, up to the last one when the repository is closed.
//
// After it every snapshot that is listed is byte-identical, those from before are listed, the structure verifies, and
// everything goes on working.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <map>

#include "absl/strings/str_cat.h"
#include "tests/support/fault/sqlite_faults.h"
#include "tests/unit/store/test_repository.h"

namespace still::store {
namespace {

constexpr size_t kImageBytes = 64 * 1024 + 77;
// More than any operation makes; a loop that gets there has a fault of its own.
constexpr int kMaxChanges = 2000;

const std::map<std::string, std::string>& Contents() {
  static const auto* const contents = new std::map<std::string, std::string>{
      {"one", MakeImage(1, kImageBytes)},
      {"two", MakeImage(2, kImageBytes)},
      {"three", MakeImage(3, kImageBytes)},
      {"after", MakeImage(4, kImageBytes)},
  };
  return *contents;
}

struct Operation {
  const char* name;
  std::function<absl::Status(Repository&)> run;
  const char* may_miss = "";
  std::function<absl::Status(Repository&)> before = nullptr;
  // Of the repository it is run on.
  bool without_catalog = false;
  bool rebuild_catalog = false;
};

void PrintTo(const Operation& operation, std::ostream* out) { *out << operation.name; }

RepositoryOptions OptionsFor(const std::string& path) { return {.path = path, .workers = 1}; }

class CatalogFaultTest : public ::testing::TestWithParam<Operation> {
 protected:
  void SetUp() override {
    ASSERT_TRUE(Repository::Init(OptionsFor(original_.path())).ok());
    auto repository = MustOpen(OptionsFor(original_.path()));
    for (const char* name : {"one", "two"}) ASSERT_TRUE(StoreImage(*repository, name, Contents().at(name)).ok());
    if (GetParam().before) {
      ASSERT_TRUE(GetParam().before(*repository).ok());
    }
    repository.reset();
    if (GetParam().without_catalog) {
      ASSERT_TRUE(RemoveFile(JoinPath(original_.path(), "catalog.db")).ok());
    }
  }

  // Opens, runs, closes.
  static absl::Status RunOn(const std::string& path) {
    RepositoryOptions options = OptionsFor(path);
    options.rebuild_catalog = GetParam().rebuild_catalog;
    STILL_ASSIGN_OR_RETURN(std::unique_ptr<Repository> repository, Repository::Open(options));
    return GetParam().run(*repository);
  }

  void CopyTo(const std::string& path) const {
    std::error_code error;
    std::filesystem::copy(original_.path(), path, std::filesystem::copy_options::recursive, error);
    ASSERT_FALSE(error) << error.message();
  }

  static void CheckAll(const std::string& path) {
    auto repository = MustOpen(OptionsFor(path));
    ASSERT_NE(repository, nullptr);
    for (const char* name : {"one", "two"}) {
      EXPECT_TRUE(name == absl::string_view(GetParam().may_miss) || repository->FindSnapshot(name).ok()) << name;
    }
    auto stored = StoreImage(*repository, "after", Contents().at("after"));
    EXPECT_TRUE(stored.ok()) << stored.status();
    auto snapshots = repository->ListSnapshots();
    ASSERT_TRUE(snapshots.ok()) << snapshots.status();
    for (const manifest::Snapshot& snapshot : *snapshots) {
      auto content = LoadImage(*repository, snapshot.name());
      ASSERT_TRUE(content.ok()) << content.status();
      EXPECT_TRUE(*content == Contents().at(snapshot.name())) << snapshot.name();
    }
    auto report = repository->Verify({});
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_TRUE(report->ok()) << report->problems[0];
  }

 private:
  TemporaryDirectory original_{"/dev/shm"};
};

TEST_P(CatalogFaultTest, LosesNothingWhenTheProcessIsKilledAtAnyWrite) {
  for (int k = 1; k < kMaxChanges; ++k) {
    SCOPED_TRACE(absl::StrCat("change ", k));
    TemporaryDirectory directory("/dev/shm");
    CopyTo(directory.path());
    // This process has no threads here: each repository ends its own when it is closed.
    const pid_t child = ::fork();
    if (child == 0) {
      SqliteFaults faults;
      faults.KillAt(k);
      ::_exit(RunOn(directory.path()).ok() ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    if (WIFEXITED(status)) {
      EXPECT_EQ(WEXITSTATUS(status), 0);
      EXPECT_GT(k, 5);
      return;
    }
    ASSERT_EQ(WTERMSIG(status), SIGKILL);
    CheckAll(directory.path());
    if (HasFailure()) return;
  }
  FAIL() << "no end of changes";
}

TEST_P(CatalogFaultTest, LosesNothingWhenTheDiskIsFullFromAnyWriteOn) {
  for (int k = 1; k < kMaxChanges; ++k) {
    SCOPED_TRACE(absl::StrCat("change ", k));
    TemporaryDirectory directory("/dev/shm");
    CopyTo(directory.path());
    SqliteFaults faults;
    faults.FillDiskAt(k);
    const absl::Status status = RunOn(directory.path());
    if (faults.changes() < k) {
      EXPECT_TRUE(status.ok()) << status;
      EXPECT_GT(k, 5);
      return;
    }
    EXPECT_TRUE(status.ok() || absl::IsResourceExhausted(status)) << status;
    faults.FillDiskAt(0);
    CheckAll(directory.path());
    if (HasFailure()) return;
  }
  FAIL() << "no end of changes";
}

absl::Status ForgetTwo(Repository& repository) {
  STILL_ASSIGN_OR_RETURN(manifest::Snapshot snapshot, repository.FindSnapshot("two"));
  return repository.Forget({snapshot.id()});
}

std::vector<Operation> Operations() {
  const auto nothing = [](Repository&) { return absl::OkStatus(); };
  return {
      {.name = "Capture",
       .run = [](Repository& repository) { return StoreImage(repository, "three", Contents().at("three")).status(); }},
      {.name = "Forget", .run = ForgetTwo, .may_miss = "two"},
      {.name = "Prune",
       .run =
           [](Repository& repository) {
             return repository.Prune({.grace = absl::ZeroDuration(), .min_live_fraction = 1}).status();
           },
       .may_miss = "two",
       .before = ForgetTwo},
      {.name = "Hold",
       .run = [](Repository& repository) -> absl::Status {
         STILL_ASSIGN_OR_RETURN(manifest::Snapshot snapshot, repository.FindSnapshot("two"));
         return repository.HoldSnapshot(snapshot.id(), "audit");
       }},
      {.name = "Open", .run = nothing, .without_catalog = true},
      {.name = "Rebuild", .run = nothing, .rebuild_catalog = true}};
}

INSTANTIATE_TEST_SUITE_P(Operations, CatalogFaultTest, ::testing::ValuesIn(Operations()),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace still::store
