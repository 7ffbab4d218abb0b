// A host with machines, a catalog and a clock that exist in memory only, for the scheduler's tests: time passes when the
// test says so, runs take as long as the test says, and everything that can go wrong can be ordered.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "schedule/scheduler.h"

namespace still::schedule {

class FakeClock final : public Clock {
 public:
  absl::Time Now() const override { return true_time + skew; }
  absl::Duration Monotonic() const override { return true_time - absl::UnixEpoch(); }
  void Sleep(absl::Duration duration) override { true_time += duration; }
  absl::Time true_time = absl::FromCivil(absl::CivilSecond(2026, 1, 1, 0, 0, 0), absl::UTCTimeZone());
  absl::Duration skew;  // Of the wall clock.
};

class MemoryBook final : public RunBook {
 public:
  absl::StatusOr<std::vector<Schedule>> Schedules() override;
  std::map<std::string, std::string> Unusable() const override { return unusable; }
  absl::StatusOr<int64_t> AddRun(const store::RunRow& run) override;
  absl::Status UpdateRun(const store::RunRow& run) override;
  absl::StatusOr<std::optional<store::RunRow>> FindRun(int64_t id) override;
  absl::StatusOr<std::vector<store::RunRow>> Running() override;
  absl::StatusOr<std::vector<store::RunCursor>> Cursors() override;
  absl::Status Remember(const std::string& key, const std::string& value) override;
  absl::Status RememberAll(const std::map<std::string, std::string>& values) override;
  absl::StatusOr<std::map<std::string, std::string>> Remembered() override;

  // With the defaults of a nightly capture of everything.
  void Add(
      const std::string& name, const std::string& pattern, const std::string& calendar,
      const std::function<void(schedulepb::Schedule&)>& change = [](auto&) {});

  std::vector<Schedule> schedules;
  std::deque<store::RunRow> rows;  // Row i has the id i + 1.
  std::set<int64_t> open;
  std::map<std::string, std::string> remembered;
  std::map<std::string, std::string> unusable;  // Schedules that cannot be read, and why.
  // What every change, and everything that is asked, ends with.
  absl::Status writes;
  absl::Status reads;

 private:
  size_t counted_ = 0;  // Rows that cursors_ knows.
  std::map<std::pair<std::string, std::string>, absl::Time> cursors_;
};

class FakeHost final : public Host {
 public:
  FakeHost(FakeClock& clock, MemoryBook& book) : clock_(clock), book_(book) {}
  absl::StatusOr<std::vector<SessionState>> Sessions() override;
  absl::StatusOr<std::map<std::string, Newest>> NewestGood(const std::set<std::string>& sessions) override;
  absl::Status Start(const Schedule& schedule, const store::RunRow& run) override;
  bool Alive(int64_t run) override { return active.count(run) != 0; }
  void Stop(int64_t run) override { active.erase(run); }

  // Ends the runs whose time has come, and keeps the snapshots that retention keeps.
  void Pass();
  // When the next run ends.
  absl::Time NextEnd() const;

  struct Run {
    absl::Time ends;  // True time.
    const Schedule schedule;
  };
  struct Taken {
    absl::Time point;  // By the wall clock.
    absl::Time true_point;
    std::string id;
    Level level = manifestpb::Consistency::FILESYSTEM;
  };
  std::map<std::string, bool> machines;           // Whether it runs.
  std::map<std::string, std::string> unreadable;  // Beside them: why.
  std::map<std::string, std::string> held;        // Of those that run: why they stand still.
  std::map<std::string, std::string> ended;       // Of those that do not run: how, when nobody stopped them.
  std::map<std::string, uint32_t> resets;         // Of those that tell: how often they were reset.
  std::map<int64_t, Run> active;
  std::map<std::pair<std::string, std::string>, std::vector<Taken>> kept;   // By session, schedule.
  std::map<std::pair<std::string, std::string>, std::vector<Taken>> taken;  // All there ever were.
  std::function<absl::Duration(const store::RunRow&)> duration = [](const auto&) { return absl::Minutes(3); };
  std::function<absl::Status(const store::RunRow&)> outcome = [](const auto&) { return absl::OkStatus(); };
  std::function<Level(const store::RunRow&)> level = [](const auto&) { return manifestpb::Consistency::FILESYSTEM; };
  size_t most_running = 0;
  int started = 0;

 private:
  void Finish(int64_t id, const Schedule& schedule);
  FakeClock& clock_;
  MemoryBook& book_;
};

// Somebody who is told, on one channel that may be out of order.
class Listener final : public Announcer {
 public:
  std::vector<std::string> Channels() const override { return channels; }
  void Deliver(const Delivery& delivery) override;
  std::vector<Outcome> TakeOutcomes() override { return std::exchange(outcomes_, {}); }
  void AllWell() override { ++all_well; }
  int Count(Event::Kind kind, const std::string& session = "") const;
  std::vector<std::string> channels = {"pager"};
  std::set<std::string> broken;                         // Channels that take nothing.
  std::vector<Event> events;                            // That arrived.
  std::set<std::pair<std::string, std::string>> stale;  // Told and not recovered: schedule, session.
  int tries = 0;
  int all_well = 0;

 private:
  std::vector<Outcome> outcomes_;
};

}  // namespace still::schedule
