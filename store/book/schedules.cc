// Book: schedules.
#include "absl/strings/str_cat.h"
#include "store/book/book.h"
#include "store/sqlite/sqlite.h"

namespace still::store {

absl::Status Book::PutSchedule(const ScheduleRow& schedule) {
  absl::MutexLock lock(&writing_);
  STILL_ASSIGN_OR_RETURN(Statement put,
                         writer_->Prepare("INSERT INTO schedule (name, session, timing, retention, enabled, "
                                          "next_run, last_run, settings) VALUES (?, ?, ?, ?, ?, ?, ?, ?) "
                                          "ON CONFLICT (name) DO UPDATE SET session = excluded.session, "
                                          "timing = excluded.timing, retention = excluded.retention, "
                                          "enabled = excluded.enabled, next_run = excluded.next_run, "
                                          "last_run = excluded.last_run, settings = excluded.settings"));
  STILL_RETURN_IF_ERROR(put.Bind(absl::string_view(schedule.name), absl::string_view(schedule.session),
                                 absl::string_view(schedule.timing), absl::string_view(schedule.retention),
                                 int64_t{schedule.enabled}, schedule.next_run, schedule.last_run,
                                 absl::string_view(schedule.settings)));
  return Change(put);
}

absl::Status Book::RemoveSchedule(absl::string_view name) {
  absl::MutexLock lock(&writing_);
  STILL_ASSIGN_OR_RETURN(Statement remove, writer_->Prepare("DELETE FROM schedule WHERE name = ?"));
  STILL_RETURN_IF_ERROR(remove.Bind(name));
  STILL_RETURN_IF_ERROR(Change(remove));
  if (writer_->changes() == 0) return absl::NotFoundError(absl::StrCat("there is no schedule \"", name, "\""));
  return absl::OkStatus();
}

absl::StatusOr<std::vector<ScheduleRow>> Book::ListSchedules() {
  absl::MutexLock lock(&reading_);
  STILL_ASSIGN_OR_RETURN(Statement select,
                         Select("SELECT name, session, timing, retention, enabled, next_run, last_run, "
                                "settings FROM schedule ORDER BY name"));
  std::vector<ScheduleRow> schedules;
  for (;;) {
    STILL_ASSIGN_OR_RETURN(bool row, select.Step());
    if (!row) return schedules;
    schedules.push_back({.name = select.Bytes(0),
                         .session = select.Bytes(1),
                         .timing = select.Bytes(2),
                         .retention = select.Bytes(3),
                         .enabled = select.Int(4) != 0,
                         .next_run = select.TimeAt(5),
                         .last_run = select.TimeAt(6),
                         .settings = select.Bytes(7)});
  }
}

}  // namespace still::store
