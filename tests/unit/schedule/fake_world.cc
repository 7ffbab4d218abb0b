#include "tests/unit/schedule/fake_world.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace still::schedule {

using store::RunOutcome;
using store::RunRow;

absl::StatusOr<std::vector<Schedule>> MemoryBook::Schedules() {
  STILL_RETURN_IF_ERROR(reads);
  std::vector<Schedule> usable;
  usable.reserve(schedules.size());
  for (const Schedule& one : schedules) {
    if (unusable.count(one.name()) == 0) usable.push_back(one);
  }
  return usable;
}

absl::StatusOr<std::map<std::string, std::string>> MemoryBook::Remembered() {
  STILL_RETURN_IF_ERROR(reads);
  return remembered;
}

absl::StatusOr<int64_t> MemoryBook::AddRun(const RunRow& run) {
  STILL_RETURN_IF_ERROR(writes);
  rows.push_back(run);
  rows.back().id = static_cast<int64_t>(rows.size());
  if (run.outcome == RunOutcome::kRunning) open.insert(rows.back().id);
  return rows.back().id;
}

absl::Status MemoryBook::UpdateRun(const RunRow& run) {
  STILL_RETURN_IF_ERROR(writes);
  if (run.id < 1 || run.id > static_cast<int64_t>(rows.size())) return absl::NotFoundError("no such run");
  rows[static_cast<size_t>(run.id - 1)] = run;
  if (run.outcome != RunOutcome::kRunning) open.erase(run.id);
  return absl::OkStatus();
}

absl::StatusOr<std::optional<RunRow>> MemoryBook::FindRun(int64_t id) {
  STILL_RETURN_IF_ERROR(reads);
  if (id < 1 || id > static_cast<int64_t>(rows.size())) return std::nullopt;
  return rows[static_cast<size_t>(id - 1)];
}

absl::StatusOr<std::vector<RunRow>> MemoryBook::Running() {
  STILL_RETURN_IF_ERROR(reads);
  std::vector<RunRow> running;
  for (int64_t id : open) running.push_back(rows[static_cast<size_t>(id - 1)]);
  return running;
}

absl::StatusOr<std::vector<store::RunCursor>> MemoryBook::Cursors() {
  STILL_RETURN_IF_ERROR(reads);
  // Each row is looked at once: a year has many, and they are asked about in each of its hours.
  for (; counted_ < rows.size(); ++counted_) {
    const RunRow& row = rows[counted_];
    if (row.occurrences == 0) continue;
    auto [at, added] = cursors_.try_emplace({row.schedule, row.session}, row.planned_until);
    at->second = std::max(at->second, row.planned_until);
  }
  std::vector<store::RunCursor> cursors;
  for (const auto& [key, until] : cursors_) {
    cursors.push_back({.schedule = key.first, .session = key.second, .planned_until = until});
  }
  return cursors;
}

absl::Status MemoryBook::Remember(const std::string& key, const std::string& value) {
  STILL_RETURN_IF_ERROR(writes);
  if (value.empty()) {
    remembered.erase(key);
  } else {
    remembered[key] = value;
  }
  return absl::OkStatus();
}

absl::Status MemoryBook::RememberAll(const std::map<std::string, std::string>& values) {
  for (const auto& [key, value] : values) STILL_RETURN_IF_ERROR(Remember(key, value));
  return absl::OkStatus();
}

void MemoryBook::Add(const std::string& name, const std::string& pattern, const std::string& calendar,
                     const std::function<void(schedulepb::Schedule&)>& change) {
  schedulepb::Schedule definition;
  definition.set_name(name);
  definition.add_sessions(pattern);
  if (!calendar.empty()) definition.add_calendar(calendar);
  definition.set_retries(3);
  definition.set_counted_from_unix_ns(
      absl::ToUnixNanos(absl::FromCivil(absl::CivilSecond(2026, 1, 1, 0, 0, 0), absl::UTCTimeZone())));
  change(definition);
  absl::StatusOr<Schedule> schedule = MakeSchedule(definition, absl::UTCTimeZone());
  ASSERT_TRUE(schedule.ok()) << schedule.status();
  schedules.push_back(*schedule);
}

absl::StatusOr<std::vector<SessionState>> FakeHost::Sessions() {
  std::vector<SessionState> sessions;
  for (const auto& [name, running] : machines) {
    auto how = ended.find(name);
    auto why = held.find(name);
    sessions.push_back({.name = name,
                        .running = running,
                        .ended = how == ended.end() ? "" : how->second,
                        .held = why == held.end() ? "" : why->second});
    if (auto times = resets.find(name); times != resets.end()) sessions.back().resets = times->second;
  }
  for (const auto& [name, why] : unreadable) {
    sessions.push_back({.name = name, .running = true, .unreadable = why, .ended = ""});
  }
  return sessions;
}

absl::StatusOr<std::map<std::string, Newest>> FakeHost::NewestGood(const std::set<std::string>& sessions) {
  std::map<std::string, Newest> newest;
  for (const auto& [key, snapshots] : kept) {
    if (sessions.count(key.first) == 0) continue;
    for (const Taken& one : snapshots) {
      auto [at, added] = newest[key.first].try_emplace(one.level, one.point);
      at->second = std::max(at->second, one.point);
    }
  }
  return newest;
}

absl::Status FakeHost::Start(const Schedule& schedule, const RunRow& run) {
  ++started;
  for (int64_t other : book_.open) {
    if (other == run.id) continue;
    EXPECT_NE(book_.rows[static_cast<size_t>(other - 1)].session, run.session) << "two runs of one session at a time";
  }
  EXPECT_EQ(book_.rows[static_cast<size_t>(run.id - 1)].outcome, RunOutcome::kRunning) << "the row comes first";
  active.try_emplace(run.id, Run{.ends = clock_.true_time + duration(run), .schedule = schedule});
  most_running = std::max(most_running, active.size());
  return absl::OkStatus();
}

void FakeHost::Pass() {
  std::vector<std::pair<int64_t, Schedule>> ended;
  for (auto at = active.begin(); at != active.end();) {
    if (at->second.ends > clock_.true_time) {
      ++at;
      continue;
    }
    ended.emplace_back(at->first, at->second.schedule);
    at = active.erase(at);
  }
  for (const auto& [id, schedule] : ended) Finish(id, schedule);
}

void FakeHost::Finish(int64_t id, const Schedule& schedule) {
  RunRow row = book_.rows[static_cast<size_t>(id - 1)];
  row.ended = clock_.Now();
  absl::Status status = outcome(row);
  row.outcome = status.ok() ? RunOutcome::kSucceeded : RunOutcome::kFailed;
  row.message = std::string(status.message());
  if (status.ok() && schedule.captures()) {
    row.snapshot = absl::StrCat("snapshot-", id);
    row.consistency = NameOfLevel(level(row));
    Taken one{.point = *row.started,
              .true_point = clock_.true_time - (*row.ended - *row.started),
              .id = row.snapshot,
              .level = level(row)};
    const std::pair<std::string, std::string> key{row.session, row.schedule};
    taken[key].push_back(one);
    std::vector<Taken>& mine = kept[key];
    mine.push_back(one);
    if (schedule.retention.has_value()) {
      std::vector<snapshot::RetentionCandidate> candidates;
      for (const Taken& each : mine) candidates.push_back({.id = each.id, .machine = row.session, .point = each.point});
      auto verdicts = snapshot::DecideRetention(candidates, *schedule.retention, clock_.Now(), schedule.timing.zone);
      ASSERT_TRUE(verdicts.ok()) << verdicts.status();
      std::vector<Taken> left;
      for (size_t i = 0; i < mine.size(); ++i) {
        if ((*verdicts)[i].keep) left.push_back(mine[i]);
      }
      mine = std::move(left);
    }
  }
  // A worker whose book takes nothing ends without a word.
  ASSERT_EQ(book_.UpdateRun(row).ok(), book_.writes.ok());
}

absl::Time FakeHost::NextEnd() const {
  absl::Time next = absl::InfiniteFuture();
  for (const auto& [id, run] : active) next = std::min(next, run.ends);
  return next;
}

void Listener::Deliver(const Delivery& delivery) {
  ++tries;
  const Event& event = delivery.event;
  const bool delivered = broken.count(delivery.channel) == 0;
  outcomes_.push_back({.key = delivery.key,
                       .channel = delivery.channel,
                       .recovery = event.kind == Event::Kind::kRecovered,
                       .delivered = delivered});
  if (!delivered) return;
  events.push_back(event);
  if (event.kind == Event::Kind::kStale) stale.insert({event.schedule, event.session});
  if (event.kind == Event::Kind::kRecovered && event.about == "stale") stale.erase({event.schedule, event.session});
}

int Listener::Count(Event::Kind kind, const std::string& session) const {
  return static_cast<int>(std::count_if(events.begin(), events.end(), [&](const Event& event) {
    return event.kind == kind && (session.empty() || event.session == session);
  }));
}

}  // namespace still::schedule
