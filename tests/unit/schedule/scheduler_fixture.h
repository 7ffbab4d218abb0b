// A scheduler in a world that exists in memory only.
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "schedule/scheduler.h"
#include "tests/unit/schedule/fake_world.h"

namespace still::schedule {

class SchedulerTest : public ::testing::Test {
 protected:
  void Begin(SchedulerOptions options = {}) {
    options.poll = options.reload_every = absl::Minutes(5);
    BeginAsStilld(options);
  }
  // With the pace that is given: stilld has the defaults.
  void BeginAsStilld(const SchedulerOptions& options = {}) {
    scheduler_ = std::make_unique<Scheduler>(book_, host_, listener_, clock_, options);
    ASSERT_TRUE(scheduler_->Recover().ok());
  }
  void Crash(bool with_workers) {
    scheduler_.reset();
    if (with_workers) host_.active.clear();
  }
  // Lets time pass with the scheduler at work.
  void Live(absl::Duration time) {
    const absl::Time until = clock_.true_time + time;
    while (clock_.true_time < until) {
      absl::StatusOr<absl::Duration> wait = scheduler_->Step();
      ASSERT_TRUE(wait.ok()) << wait.status();
      ASSERT_GT(*wait, absl::ZeroDuration());
      clock_.true_time = std::min({until, clock_.true_time + *wait, std::max(host_.NextEnd(), clock_.true_time)});
      host_.Pass();
    }
    ASSERT_TRUE(scheduler_->Step().ok());
  }
  // Without it.
  void Sleep(absl::Duration time) { clock_.true_time += time; }
  std::vector<store::RunRow> Rows(store::RunOutcome outcome, const std::string& session = "") const {
    std::vector<store::RunRow> rows;
    for (const store::RunRow& row : book_.rows) {
      if (row.outcome == outcome && (session.empty() || row.session == session)) rows.push_back(row);
    }
    return rows;
  }

  FakeClock clock_;
  MemoryBook book_;
  FakeHost host_{clock_, book_};
  Listener listener_;
  std::unique_ptr<Scheduler> scheduler_;
};

}  // namespace still::schedule
