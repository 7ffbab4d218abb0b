#include "schedule/lost_schedules.h"

#include <algorithm>
#include <optional>
#include <set>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "schedule/schedule.h"
#include "store/snapshot_reference.h"

namespace still::schedule {
namespace {

constexpr absl::string_view kLostPrefix = "lost/";
constexpr char kBookKey[] = "book";
constexpr char kNew[] = "new";      // Nobody has had it together with the repository yet.
constexpr char kKnown[] = "known";  // What it does not have, it has not lost.
// Schedules that took nothing for longer were mostly removed before the book was lost. A monthly one is found.
constexpr absl::Duration kLately = absl::Hours(24 * 45);
// Each costs a look into the catalog, and all of them are looked at while stilld starts.
constexpr size_t kMostLookedAt = 10'000;

// Of this host's machines, the newest ones first. An import is of a file, and no schedule's.
std::vector<const store::SnapshotSummary*> RecentHere(const std::vector<store::SnapshotSummary>& snapshots,
                                                      const HostIdentity& here, absl::Time now) {
  std::vector<const store::SnapshotSummary*> recent;
  for (const store::SnapshotSummary& one : snapshots) {
    const bool lately = now - absl::FromUnixNanos(one.committed_unix_ns) < kLately;
    if (lately && !one.session_id.empty() && store::IsOfHost(one, here)) recent.push_back(&one);
  }
  std::sort(recent.begin(), recent.end(),
            [](const auto* a, const auto* b) { return a->committed_unix_ns > b->committed_unix_ns; });
  if (recent.size() > kMostLookedAt) recent.resize(kMostLookedAt);
  return recent;
}

}  // namespace

std::string LostKey(absl::string_view schedule) { return absl::StrCat(kLostPrefix, schedule); }

std::map<std::string, absl::Time> ParseLost(const std::map<std::string, std::string>& remembered) {
  std::map<std::string, absl::Time> lost;
  for (auto row = remembered.lower_bound(std::string(kLostPrefix)); row != remembered.end(); ++row) {
    if (!absl::StartsWith(row->first, kLostPrefix)) break;
    int64_t seconds = 0;
    if (!absl::SimpleAtoi(row->second, &seconds)) continue;
    lost[row->first.substr(kLostPrefix.size())] = absl::FromUnixSeconds(seconds);
  }
  return lost;
}

absl::Status NoteWhetherNew(store::Book& book) {
  STILL_ASSIGN_OR_RETURN(auto remembered, book.Remembered());
  if (remembered.count(kBookKey) != 0) return absl::OkStatus();
  // One of a version that noted nothing has something in it, or has nothing to lose.
  STILL_ASSIGN_OR_RETURN(std::vector<store::ScheduleRow> schedules, book.ListSchedules());
  STILL_ASSIGN_OR_RETURN(std::vector<store::RunRow> runs, book.ListRuns({.limit = 1}));
  const bool empty = remembered.empty() && schedules.empty() && runs.empty();
  return book.Remember(kBookKey, empty ? kNew : kKnown);
}

absl::Status NoteLostSchedules(store::Book& book, store::Repository& repository, store::Catalog& catalog,
                               const HostIdentity& here, absl::Time now) {
  STILL_ASSIGN_OR_RETURN(auto remembered, book.Remembered());
  if (auto row = remembered.find(kBookKey); row == remembered.end() || row->second != kNew) return absl::OkStatus();
  STILL_ASSIGN_OR_RETURN(std::vector<store::ScheduleRow> schedules, book.ListSchedules());
  std::set<std::string> looked_at;
  for (const store::ScheduleRow& schedule : schedules) looked_at.insert(schedule.name);
  std::map<std::string, std::string> values;
  STILL_ASSIGN_OR_RETURN(const auto snapshots, repository.Summaries());
  for (const store::SnapshotSummary* one : RecentHere(*snapshots, here, now)) {
    STILL_ASSIGN_OR_RETURN(const std::optional<store::CatalogSnapshot> found, catalog.FindSnapshot(one->id));
    if (!found.has_value()) continue;  // It was forgotten meanwhile.
    auto label = found->labels.find(std::string(kScheduleLabel));
    if (label == found->labels.end() || !looked_at.insert(label->second).second) continue;
    // What a version without a book kept was taken over, with the runs of schedules that were removed.
    STILL_ASSIGN_OR_RETURN(std::vector<store::RunRow> runs, book.ListRuns({.schedule = label->second, .limit = 1}));
    if (!runs.empty()) continue;
    values[LostKey(label->second)] = absl::StrCat(one->point_unix_ns / 1'000'000'000);
  }
  values[kBookKey] = kKnown;
  return book.RememberAll(values);
}

absl::StatusOr<bool> ForgetLost(store::Book& book, absl::string_view schedule) {
  const std::string key = LostKey(schedule);
  STILL_ASSIGN_OR_RETURN(auto remembered, book.Remembered());
  if (remembered.count(key) == 0) return false;
  STILL_RETURN_IF_ERROR(book.Remember(key, ""));
  return true;
}

}  // namespace still::schedule
