#include "schedule/stored_book.h"

#include <utility>

#include "store/catalog/catalog.h"

namespace still::schedule {
namespace {

// More can only be left by a book that somebody wrote by hand.
constexpr int64_t kMostRunning = 10000;

}  // namespace

absl::StatusOr<std::vector<Schedule>> StoredBook::Schedules() {
  STILL_ASSIGN_OR_RETURN(std::vector<store::ScheduleRow> rows, book_.ListSchedules());
  const absl::TimeZone local = local_.Now();
  std::vector<Schedule> schedules;
  std::map<std::string, std::string> unusable;
  for (const store::ScheduleRow& row : rows) {
    absl::StatusOr<Schedule> schedule = FromRow(row, local);
    if (schedule.ok()) {
      schedules.push_back(*std::move(schedule));
    } else {
      unusable[row.name] = std::string(schedule.status().message());
    }
  }
  absl::MutexLock lock(&mutex_);
  unusable_ = std::move(unusable);
  return schedules;
}

std::map<std::string, std::string> StoredBook::Unusable() const {
  absl::MutexLock lock(&mutex_);
  return unusable_;
}

absl::StatusOr<std::vector<store::RunRow>> StoredBook::Running() {
  return book_.ListRuns({.outcome = store::RunOutcome::kRunning, .limit = kMostRunning});
}

absl::StatusOr<std::unique_ptr<store::Book>> OpenBook(const std::string& state, const std::string& repository_path,
                                                      const store::Repository& repository) {
  STILL_ASSIGN_OR_RETURN(std::unique_ptr<store::Book> book, store::Book::Open({.path = store::BookPath(state)}));
  STILL_RETURN_IF_ERROR(TakeOverFromCatalog(*book, repository_path, repository));
  return book;
}

absl::Status TakeOverFromCatalog(store::Book& book, const std::string& repository_path,
                                 const store::Repository& repository) {
  return book.ImportOnce(repository.id(),
                         store::KnownCatalogs(repository_path, repository.id(), repository.encrypted()));
}

}  // namespace still::schedule
