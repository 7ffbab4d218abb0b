// A host with machines, a catalog and a clock that exist in memory only, for the scheduler's tests: time passes when the
// test says so, runs take as long as the test says, and everything that can go wrong can be ordered.
#pragma once

#include <functional>
#include <map>
#include <set>
#include <string>
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
  absl::StatusOr<std::vector<Schedule>> Schedules() override { return schedules; }
  absl::StatusOr<int64_t> AddRun(const store::RunRow& run) override;
  absl::Status UpdateRun(const store::RunRow& run) override;
  absl::StatusOr<std::optional<store::RunRow>> FindRun(int64_t id) override;
  absl::StatusOr<std::vector<store::RunRow>> Running() override;
  absl::StatusOr<std::vector<store::RunCursor>> Cursors() override;
  absl::Status Remember(const std::string& key, const std::string& value) override;
  absl::StatusOr<std::map<std::string, std::string>> Remembered() override { return remembered; }

  // With the defaults of a nightly capture of everything.
  void Add(
      const std::string& name, const std::string& pattern, const std::string& calendar,
      const std::function<void(schedulepb::Schedule&)>& change = [](auto&) {});

  std::vector<Schedule> schedules;
  std::vector<store::RunRow> rows;  // Row i has the id i + 1.
  std::set<int64_t> open;
  std::map<std::string, std::string> remembered;
};

class FakeHost final : public Host {
 public:
  FakeHost(FakeClock& clock, MemoryBook& book) : clock_(clock), book_(book) {}
  absl::StatusOr<std::vector<SessionState>> Sessions() override;
  absl::StatusOr<std::optional<absl::Time>> NewestGood(const std::string& session) override;
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
  };
  std::map<std::string, bool> machines;  // Whether it runs.
  std::map<int64_t, Run> active;
  std::map<std::pair<std::string, std::string>, std::vector<Taken>> kept;   // By session, schedule.
  std::map<std::pair<std::string, std::string>, std::vector<Taken>> taken;  // All there ever were.
  std::function<absl::Duration(const store::RunRow&)> duration = [](const auto&) { return absl::Minutes(3); };
  std::function<absl::Status(const store::RunRow&)> outcome = [](const auto&) { return absl::OkStatus(); };
  size_t most_running = 0;
  int started = 0;

 private:
  void Finish(int64_t id, const Schedule& schedule);
  FakeClock& clock_;
  MemoryBook& book_;
};

class Listener final : public Announcer {
 public:
  void Announce(const Event& event) override;
  int Count(Event::Kind kind, const std::string& session = "") const;
  std::vector<Event> events;
  std::set<std::pair<std::string, std::string>> stale;  // Told and not recovered: schedule, session.
};

}  // namespace still::schedule
