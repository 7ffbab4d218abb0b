// Catalog: schedules and jobs, the two tables that are nowhere else; and where the file lies.
#include <stdlib.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "store/catalog/catalog.h"
#include "store/catalog/sqlite.h"

namespace still::store {

absl::Status Catalog::PutSchedule(const CatalogSchedule& schedule) {
  STILL_ASSIGN_OR_RETURN(CatalogTransaction change, Begin());
  {
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
    STILL_RETURN_IF_ERROR(put.Run());
  }
  return change.Commit();
}

absl::Status Catalog::RemoveSchedule(absl::string_view name) {
  STILL_ASSIGN_OR_RETURN(CatalogTransaction change, Begin());
  {
    STILL_ASSIGN_OR_RETURN(Statement remove, writer_->Prepare("DELETE FROM schedule WHERE name = ?"));
    STILL_RETURN_IF_ERROR(remove.Bind(name));
    STILL_RETURN_IF_ERROR(remove.Run());
  }
  if (writer_->changes() == 0) return absl::NotFoundError(absl::StrCat("there is no schedule \"", name, "\""));
  return change.Commit();
}

absl::StatusOr<std::vector<CatalogSchedule>> Catalog::ListSchedules() {
  absl::MutexLock lock(&reading_);
  STILL_ASSIGN_OR_RETURN(Statement select,
                         reader_->Prepare("SELECT name, session, timing, retention, enabled, next_run, last_run, "
                                          "settings FROM schedule ORDER BY name"));
  std::vector<CatalogSchedule> schedules;
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

absl::StatusOr<int64_t> Catalog::AddJob(const CatalogJob& job) {
  STILL_ASSIGN_OR_RETURN(CatalogTransaction change, Begin());
  {
    STILL_ASSIGN_OR_RETURN(Statement insert,
                           writer_->Prepare("INSERT INTO job (kind, subject, state, owner, started, ended, done, "
                                            "total, message) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"));
    STILL_RETURN_IF_ERROR(insert.Bind(absl::string_view(job.kind), absl::string_view(job.subject),
                                      static_cast<int64_t>(job.state), absl::string_view(job.owner),
                                      absl::ToUnixNanos(job.started), job.ended, static_cast<int64_t>(job.done),
                                      static_cast<int64_t>(job.total), absl::string_view(job.message)));
    STILL_RETURN_IF_ERROR(insert.Run());
  }
  const int64_t id = writer_->last_insert_id();
  STILL_RETURN_IF_ERROR(change.Commit());
  return id;
}

absl::Status Catalog::UpdateJob(const CatalogJob& job) {
  STILL_ASSIGN_OR_RETURN(CatalogTransaction change, Begin());
  {
    STILL_ASSIGN_OR_RETURN(Statement update,
                           writer_->Prepare("UPDATE job SET kind = ?, subject = ?, state = ?, owner = ?, started = ?, "
                                            "ended = ?, done = ?, total = ?, message = ? WHERE id = ?"));
    STILL_RETURN_IF_ERROR(update.Bind(absl::string_view(job.kind), absl::string_view(job.subject),
                                      static_cast<int64_t>(job.state), absl::string_view(job.owner),
                                      absl::ToUnixNanos(job.started), job.ended, static_cast<int64_t>(job.done),
                                      static_cast<int64_t>(job.total), absl::string_view(job.message), job.id));
    STILL_RETURN_IF_ERROR(update.Run());
  }
  if (writer_->changes() == 0) return absl::NotFoundError(absl::StrCat("there is no job ", job.id));
  return change.Commit();
}

absl::StatusOr<std::vector<CatalogJob>> Catalog::ListJobs(int64_t limit) {
  absl::MutexLock lock(&reading_);
  STILL_ASSIGN_OR_RETURN(Statement select,
                         reader_->Prepare("SELECT id, kind, subject, state, owner, started, ended, done, total, "
                                          "message FROM job ORDER BY id DESC LIMIT ?"));
  STILL_RETURN_IF_ERROR(select.Bind(limit));
  std::vector<CatalogJob> jobs;
  for (;;) {
    STILL_ASSIGN_OR_RETURN(bool row, select.Step());
    if (!row) return jobs;
    jobs.push_back({.id = select.Int(0),
                    .kind = select.Bytes(1),
                    .subject = select.Bytes(2),
                    .state = static_cast<JobState>(select.Int(3)),
                    .owner = select.Bytes(4),
                    .started = absl::FromUnixNanos(select.Int(5)),
                    .ended = select.TimeAt(6),
                    .done = static_cast<uint64_t>(select.Int(7)),
                    .total = static_cast<uint64_t>(select.Int(8)),
                    .message = select.Bytes(9)});
  }
}

absl::Status Catalog::TrimJobs(int64_t keep) {
  STILL_ASSIGN_OR_RETURN(CatalogTransaction change, Begin());
  {
    STILL_ASSIGN_OR_RETURN(Statement trim,
                           writer_->Prepare("DELETE FROM job WHERE state <> 1 AND id NOT IN "
                                            "(SELECT id FROM job WHERE state <> 1 ORDER BY id DESC LIMIT ?)"));
    STILL_RETURN_IF_ERROR(trim.Bind(keep));
    STILL_RETURN_IF_ERROR(trim.Run());
  }
  return change.Commit();
}

absl::StatusOr<std::string> CatalogPath(absl::string_view repository_path, absl::string_view repository_id,
                                        bool encrypted) {
  if (!encrypted) return JoinPath(repository_path, "catalog.db");
  std::string cache;
  if (const char* own = ::getenv("STILL_CACHE_DIR"); own != nullptr && *own != '\0') {
    cache = own;
  } else if (const char* xdg = ::getenv("XDG_CACHE_HOME"); xdg != nullptr && *xdg != '\0') {
    cache = JoinPath(xdg, "stillpoint");
  } else if (const char* home = ::getenv("HOME"); home != nullptr && *home != '\0') {
    cache = JoinPath(home, ".cache/stillpoint");
  } else {
    return absl::FailedPreconditionError("catalog: no place for it; set STILL_CACHE_DIR to a private directory");
  }
  STILL_RETURN_IF_ERROR(Annotate(MakeDirectories(cache), "catalog"));
  return JoinPath(cache, absl::StrCat(repository_id, ".db"));
}

}  // namespace still::store
