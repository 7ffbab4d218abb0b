#include "schedule/catalog_book.h"

#include <utility>

#include "base/log.h"

namespace still::schedule {
namespace {

// More can only be left by a catalog that somebody wrote by hand.
constexpr int64_t kMostRunning = 10000;

}  // namespace

absl::StatusOr<std::vector<Schedule>> CatalogBook::Schedules() {
  STILL_ASSIGN_OR_RETURN(std::vector<store::CatalogSchedule> rows, catalog_.ListSchedules());
  std::vector<Schedule> schedules;
  for (const store::CatalogSchedule& row : rows) {
    absl::StatusOr<Schedule> schedule = FromRow(row, local_);
    if (schedule.ok()) {
      schedules.push_back(*std::move(schedule));
    } else {
      LogError("a schedule cannot be used", {{"schedule", row.name}, {"error", schedule.status().ToString()}});
    }
  }
  return schedules;
}

absl::StatusOr<std::vector<store::CatalogRun>> CatalogBook::Running() {
  return catalog_.ListRuns({.outcome = store::RunOutcome::kRunning, .limit = kMostRunning});
}

}  // namespace still::schedule
