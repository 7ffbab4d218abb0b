// A supervisor whose repository is not there when it begins, hangs, goes, and comes back. Here it is a directory that is
// renamed, where a user's is a mount that is missing; and a FIFO where a read hangs, as on a hard NFS mount without its server.
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <functional>
#include <memory>
#include <string>

#include "base/clock.h"
#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "schedule/supervisor.h"
#include "session/control/session_registry.h"
#include "tools/stilld/figures.h"
#include "tools/stilld/metrics.h"
#include "tools/stilld/status_page.h"

namespace still::daemon {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// Only where something never happens.
constexpr absl::Duration kHangs = absl::Minutes(5);

class RepositoryAwayTest : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = JoinPath(::testing::TempDir(), "still-away-XXXXXX");
    ASSERT_NE(::mkdtemp(root_.data()), nullptr);
    options_ = {.state = JoinPath(root_, "state"),
                .repository = {.path = JoinPath(root_, "repository"), .workers = 1},
                .worker_program = "/bin/false",
                .without_repository = true};
    ASSERT_TRUE(store::Repository::Init(options_.repository).ok());
    absl::StatusOr<session::SessionPlace> place = session::SessionRegistry(options_.state).Create("web");
    ASSERT_TRUE(place.ok()) << place.status();
    ASSERT_TRUE(WriteFileAtomically(JoinPath(place->directory, "session.json"), "{\"name\":\"web\"}").ok());
    place_ = *std::move(place);
  }
  void TearDown() override {
    supervisor_.reset();
    EXPECT_TRUE(RemoveTree(root_).ok());
  }
  void TakeAway() { ASSERT_EQ(::rename(options_.repository.path.c_str(), away().c_str()), 0); }
  void BringBack() { ASSERT_EQ(::rename(away().c_str(), options_.repository.path.c_str()), 0); }
  std::string away() const { return options_.repository.path + ".away"; }
  void Begin() {
    auto supervisor = schedule::Supervisor::Open(options_);
    ASSERT_TRUE(supervisor.ok()) << supervisor.status();
    supervisor_ = *std::move(supervisor);
    const absl::Status charge = supervisor_->TakeCharge();
    ASSERT_TRUE(charge.ok()) << charge;
  }
  // A schedule that this machine has had for a year.
  void Schedule() {
    schedulepb::Schedule definition;
    definition.set_name("yearly");
    definition.set_kind(schedulepb::Schedule::KIND_CAPTURE);
    definition.add_sessions("web");
    definition.set_every("1h");
    const absl::Time long_ago = Clock::Real().Now() - absl::Hours(24 * 365);
    definition.set_counted_from_unix_ns(absl::ToUnixNanos(long_ago));
    auto book = store::Book::Open({.path = store::BookPath(options_.state)});
    ASSERT_TRUE(book.ok()) << book.status();
    auto schedule = schedule::MakeSchedule(definition, absl::UTCTimeZone());
    ASSERT_TRUE(schedule.ok()) << schedule.status();
    ASSERT_TRUE((*book)->PutSchedule(*schedule::ToRow(*schedule)).ok());
    ASSERT_TRUE((*book)
                    ->Remember(schedule::PairMemoryKey("yearly", "web"),
                               schedule::EncodePairMemory({.known = long_ago, .was_there = true}))
                    .ok());
  }
  // Takes turns until a report fits.
  schedulepb::CheckReport TurnUntil(const std::function<bool(const schedulepb::CheckReport&)>& fits) {
    const absl::Duration give_up = Clock::Real().Monotonic() + kHangs;
    for (;;) {
      (void)supervisor_->Step();  // Its error is what the report shows, in time.
      auto report = supervisor_->Report();
      EXPECT_TRUE(report.ok()) << report.status();
      if (fits(*report)) return *report;
      if (Clock::Real().Monotonic() > give_up) {
        ADD_FAILURE() << "it never comes: " << report->ShortDebugString();
        return *report;
      }
      supervisor_->Sleep(absl::Milliseconds(200));
    }
  }
  static const schedulepb::CheckReport::Problem* Find(const schedulepb::CheckReport& report, const std::string& kind) {
    for (const auto& problem : report.problems()) {
      if (problem.kind() == kind) return &problem;
    }
    return nullptr;
  }
  void ExpectAnswersInRed() {
    CountedStats stats;
    absl::StatusOr<Figures> figures = GatherFigures(*supervisor_, stats);
    ASSERT_TRUE(figures.ok()) << figures.status();
    const std::string metrics = Metrics().Render(*figures);
    EXPECT_THAT(metrics, HasSubstr("stillpoint_session_running{session=\"web\"} 1"));
    EXPECT_THAT(metrics, Not(HasSubstr("stillpoint_repository_snapshots"))) << "nobody knows how many";
    const std::string page = RenderStatusPage(*figures);
    EXPECT_THAT(page, HasSubstr("id=health class=bad"));
    EXPECT_THAT(page, HasSubstr("cannot be read now"));
  }

  std::string root_;
  schedule::SupervisorOptions options_;
  session::SessionPlace place_;
  std::unique_ptr<schedule::Supervisor> supervisor_;
};

TEST_F(RepositoryAwayTest, ItBeginsWithoutItTellsAndGoesOnWhenItIsBack) {
  Schedule();
  TakeAway();
  Begin();
  EXPECT_FALSE(supervisor_->Step().ok()) << "no turn is full without it";
  ExpectAnswersInRed();
  const auto told = TurnUntil([](const auto& report) { return Find(report, "scheduler") != nullptr; });
  EXPECT_EQ(told.turned_unix_ns(), 0);
  EXPECT_THAT(Find(told, "scheduler")->message(), HasSubstr("the repository cannot be opened"));
  EXPECT_EQ(Find(told, "stale"), nullptr) << "how old the newest snapshot is, nobody can know";
  ExpectAnswersInRed();
  BringBack();
  const auto back = TurnUntil([](const auto& report) { return report.turned_unix_ns() != 0; });
  EXPECT_EQ(Find(back, "scheduler"), nullptr);
  EXPECT_NE(Find(back, "stale"), nullptr) << "now it is known that there is none";
  CountedStats stats;
  absl::StatusOr<Figures> figures = GatherFigures(*supervisor_, stats);
  ASSERT_TRUE(figures.ok()) << figures.status();
  EXPECT_THAT(Metrics().Render(*figures), HasSubstr("stillpoint_repository_snapshots 0"));
}

// Its catalog lies in the cache, and is still there.
TEST_F(RepositoryAwayTest, AnEncryptedOneThatGoesWhileItRunsIsTold) {
  ASSERT_TRUE(RemoveTree(options_.repository.path).ok());
  ASSERT_EQ(::setenv("STILL_CACHE_DIR", JoinPath(root_, "cache").c_str(), 1), 0);
  options_.repository.credentials.passphrase = "secret";
  options_.repository.key_cost = {.passes = 1, .memory_kib = 8192};
  ASSERT_TRUE(store::Repository::Init(options_.repository).ok());
  Begin();
  TurnUntil([](const auto& report) { return report.turned_unix_ns() != 0; });
  TakeAway();
  const auto told = TurnUntil([](const auto& report) { return Find(report, "scheduler") != nullptr; });
  EXPECT_THAT(Find(told, "scheduler")->message(), HasSubstr("the repository cannot be opened"));
  BringBack();
  TurnUntil([](const auto& report) { return Find(report, "scheduler") == nullptr; });
  ::unsetenv("STILL_CACHE_DIR");
}

// Nothing ends a system call that hangs: neither the start nor a turn may wait for it.
TEST_F(RepositoryAwayTest, OneThatHangsHoldsUpNeitherTheStartNorATurn) {
  const std::string config = JoinPath(options_.repository.path, "config");
  const std::string aside = JoinPath(root_, "config");
  ASSERT_EQ(::rename(config.c_str(), aside.c_str()), 0);
  // Whoever opens it waits for a writer.
  ASSERT_EQ(::mkfifo(config.c_str(), 0600), 0);
  options_.first_opening = absl::Milliseconds(100);
  Begin();
  const absl::Status turn = supervisor_->Step().status();
  EXPECT_THAT(turn.message(), HasSubstr("does not answer"));
  ExpectAnswersInRed();
  // The server is back: what hung goes on, and the next try finds what it should.
  const std::string pipe = JoinPath(root_, "pipe");
  ASSERT_EQ(::rename(config.c_str(), pipe.c_str()), 0);
  ASSERT_EQ(::rename(aside.c_str(), config.c_str()), 0);
  (void)OpenFile(pipe, O_WRONLY | O_NONBLOCK);  // Nobody waits for a writer there if the try has not got so far yet.
  TurnUntil([](const auto& report) { return report.turned_unix_ns() != 0; });
}

// `still schedule run-due`: it takes one turn, and must tell in it.
TEST_F(RepositoryAwayTest, WhoeverTakesOneTurnTellsAtOnceAndTheNextThatItIsBack) {
  options_.failing_after = absl::ZeroDuration();
  const std::string told = JoinPath(root_, "told");
  options_.announcer.command = "echo $STILL_EVENT $STILL_MESSAGE >>" + told;
  Schedule();
  TakeAway();
  for (int call = 0; call < 2; ++call) {
    Begin();
    EXPECT_FALSE(supervisor_->Step().ok());
    supervisor_->FinishTelling();
    supervisor_.reset();
  }
  absl::StatusOr<std::string> words = ReadFile(told, 1 << 16);
  ASSERT_TRUE(words.ok()) << words.status();
  EXPECT_THAT(*words, HasSubstr("scheduler the schedules cannot be worked on: the repository cannot be opened"));
  EXPECT_EQ(words->find("scheduler the schedules"), words->rfind("scheduler the schedules")) << "once: " << *words;
  BringBack();
  Begin();
  EXPECT_TRUE(supervisor_->Step().ok());
  supervisor_->FinishTelling();
  words = ReadFile(told, 1 << 16);
  ASSERT_TRUE(words.ok()) << words.status();
  EXPECT_THAT(*words, HasSubstr("recovered the schedules are worked on again"));
  EXPECT_THAT(*words, HasSubstr("stale")) << "now ages are looked at, too";
}

TEST_F(RepositoryAwayTest, WhoeverMustHaveItIsRefused) {
  TakeAway();
  options_.without_repository = false;
  EXPECT_FALSE(schedule::Supervisor::Open(options_).ok());
}

}  // namespace
}  // namespace still::daemon
