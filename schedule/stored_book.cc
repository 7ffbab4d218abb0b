#include "schedule/stored_book.h"

#include <utility>

#include "base/log.h"
#include "store/catalog/catalog.h"

namespace still::schedule {
namespace {

// More can only be left by a book that somebody wrote by hand.
constexpr int64_t kMostRunning = 10000;

}  // namespace

absl::StatusOr<std::vector<Schedule>> StoredBook::Schedules() {
  STILL_ASSIGN_OR_RETURN(std::vector<store::ScheduleRow> rows, book_.ListSchedules());
  std::vector<Schedule> schedules;
  for (const store::ScheduleRow& row : rows) {
    absl::StatusOr<Schedule> schedule = FromRow(row, local_);
    if (schedule.ok()) {
      schedules.push_back(*std::move(schedule));
    } else {
      LogError("a schedule cannot be used", {{"schedule", row.name}, {"error", schedule.status().ToString()}});
    }
  }
  return schedules;
}

absl::StatusOr<std::vector<store::RunRow>> StoredBook::Running() {
  return book_.ListRuns({.outcome = store::RunOutcome::kRunning, .limit = kMostRunning});
}

absl::StatusOr<std::unique_ptr<store::Book>> OpenBook(const std::string& state, const std::string& repository_path,
                                                      const store::Repository& repository) {
  STILL_ASSIGN_OR_RETURN(std::unique_ptr<store::Book> book, store::Book::Open({.path = store::BookPath(state)}));
  STILL_RETURN_IF_ERROR(book->ImportOnce(
      repository.id(), store::KnownCatalogs(repository_path, repository.id(), repository.encrypted())));
  return book;
}

}  // namespace still::schedule
