// What a rollback that dies leaves, and what becomes of it: every state that it can die in, on plain files.
#include "snapshot/rollback_journal.h"

#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <optional>

#include "base/file.h"
#include "base/unix_socket.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "snapshot/disk_swap.h"

namespace still::snapshot {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class RollbackJournalTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = JoinPath(::testing::TempDir(), "still-rollback-XXXXXX");
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    root_ = pattern;
    sessions_.emplace(root_);
    Write(Session() + "/session.json", R"({"name": "web"})");
    Write(Session() + "/mark", "old");
    for (const std::string& disk : Disks()) Write(disk, "old");
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(root_).ok()); }

  std::string Session() const { return root_ + "/sessions/web"; }
  // A name with a tab in it is a name.
  std::vector<std::string> Disks() const { return {root_ + "/disks/a.raw", root_ + "/disks/b\t2.raw"}; }
  static void Write(const std::string& path, const std::string& content) {
    ASSERT_TRUE(MakeDirectories(path.substr(0, path.rfind('/'))).ok());
    ASSERT_TRUE(WriteFileAtomically(path, content).ok());
  }
  static std::string Read(const std::string& path) { return ReadFile(path, 100).value_or("nothing"); }
  static void Move(const std::string& from, const std::string& to) { ASSERT_TRUE(Rename(from, to).ok()); }

  // The order of snapshot/rollback.cc; the process dies after `steps` of them.
  static constexpr int kStaged = 4, kSwapped = 10, kStarted = 11, kDiscarded = 14;
  void DieAfter(int steps) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      Rollback(steps);
      ::raise(SIGKILL);
    }
    int how = 0;
    ASSERT_EQ(::waitpid(child, &how, 0), child);
    ASSERT_TRUE(WIFSIGNALED(how)) << how;
  }
  void Rollback(int steps) {
    absl::StatusOr<RollbackJournal> journal = RollbackJournal::Open(*sessions_, "web");
    if (!journal.ok()) ::_exit(1);
    const std::string tag = journal->tag();
    auto step = [&steps](bool done) {
      if (!done) ::_exit(2);
      if (--steps == 0) ::raise(SIGKILL);
    };
    step(journal->Begin(Disks()).ok());
    step(MakeDirectories(journal->staging()).ok() && WriteFileAtomically(journal->staging() + "/mark", "new").ok() &&
         WriteFileAtomically(journal->staging() + "/session.json", R"({"name": "web"})").ok());
    for (const std::string& disk : Disks()) step(WriteFileAtomically(DiskSwap::StagedName(disk, tag), "new").ok());
    for (const std::string& disk : Disks()) {
      step(Rename(disk, DiskSwap::BeforeName(disk, tag)).ok());
      step(Rename(DiskSwap::StagedName(disk, tag), disk).ok());
    }
    step(Rename(Session(), journal->before()).ok());
    step(Rename(journal->staging(), Session()).ok());
    step(journal->Started().ok());
    for (const std::string& disk : Disks()) step(RemoveFile(DiskSwap::BeforeName(disk, tag)).ok());
    step(RemoveTree(journal->before()).ok());
  }

  void ExpectAll(const std::string& state) {
    EXPECT_EQ(Read(Session() + "/mark"), state);
    for (const std::string& disk : Disks()) EXPECT_EQ(Read(disk), state) << disk;
    EXPECT_THAT(ListDirectory(root_ + "/sessions").value(), ElementsAre("web"));
    EXPECT_EQ(ListDirectory(root_ + "/disks")->size(), 2u) << "nothing staged, nothing old";
    EXPECT_THAT(ListDirectory(root_ + "/rollbacks").value(), IsEmpty());
  }

  std::string root_;
  std::optional<session::SessionRegistry> sessions_;
};

TEST_F(RollbackJournalTest, WhereverItDiesTheOldStateComesBackOrTheNewOneIsWhole) {
  for (int steps = 1; steps <= kDiscarded; ++steps) {
    SCOPED_TRACE(steps);
    DieAfter(steps);
    SweepRollbacks(*sessions_);
    ExpectAll(steps < kStarted ? "old" : "new");
    Write(Session() + "/mark", "old");
    for (const std::string& disk : Disks()) Write(disk, "old");
  }
}

TEST_F(RollbackJournalTest, ASessionThatHasComeUpMeanwhileKeepsWhatItRunsOn) {
  DieAfter(kSwapped);
  auto socket = ListenUnix(Session() + "/control.sock");
  ASSERT_TRUE(socket.ok()) << socket.status();
  SweepRollbacks(*sessions_);
  socket->Reset();
  ExpectAll("new");
}

TEST_F(RollbackJournalTest, ARunningSessionKeepsItsDisksWhenOnlyStagingWasDone) {
  DieAfter(kStaged);
  auto socket = ListenUnix(Session() + "/control.sock");
  ASSERT_TRUE(socket.ok()) << socket.status();
  SweepRollbacks(*sessions_);
  ExpectAll("old");
}

TEST_F(RollbackJournalTest, OneAtATimeAndNobodySweepsUnderIt) {
  auto first = RollbackJournal::Open(*sessions_, "web");
  ASSERT_TRUE(first.ok()) << first.status();
  ASSERT_TRUE(first->Begin(Disks()).ok());
  Write(DiskSwap::StagedName(Disks()[0], first->tag()), "new");
  auto second = RollbackJournal::Open(*sessions_, "web");
  EXPECT_TRUE(absl::IsFailedPrecondition(second.status()));
  EXPECT_THAT(second.status().message(), HasSubstr("another rollback of session web is under way"));
  EXPECT_TRUE(RollbackJournal::Open(*sessions_, "other").ok());
  SweepRollbacks(*sessions_);
  EXPECT_EQ(Read(DiskSwap::StagedName(Disks()[0], first->tag())), "new");
  first = absl::CancelledError();
  ExpectAll("old");
  EXPECT_TRUE(RollbackJournal::Open(*sessions_, "web").ok());
}

TEST_F(RollbackJournalTest, TheNextRollbackSettlesFirstAndALineThatIsCutOffMeansNothing) {
  DieAfter(kSwapped);
  { EXPECT_TRUE(RollbackJournal::Open(*sessions_, "web").ok()); }
  ExpectAll("old");
  Write(root_ + "/rollbacks/web", "1234abcd\t" + Disks()[0]);
  SweepRollbacks(*sessions_);
  ExpectAll("old");
}

}  // namespace
}  // namespace still::snapshot
