// Catalog: the runs of schedules, and what is remembered between processes.
#include <utility>

#include "absl/strings/str_cat.h"
#include "store/catalog/catalog.h"
#include "store/catalog/sqlite.h"

namespace still::store {
namespace {

#define STILL_RUN_COLUMNS                                                                                    \
  "schedule, kind, session, planned, planned_until, occurrences, started, ended, outcome, owner, snapshot, " \
  "consistency, bytes_read, bytes_stored, freeze_us, pause_us, message"

CatalogRun RunFrom(const Statement& row) {
  return {.id = row.Int(0),
          .schedule = row.Bytes(1),
          .kind = row.Bytes(2),
          .session = row.Bytes(3),
          .planned = absl::FromUnixNanos(row.Int(4)),
          .planned_until = absl::FromUnixNanos(row.Int(5)),
          .occurrences = static_cast<uint64_t>(row.Int(6)),
          .started = row.TimeAt(7),
          .ended = row.TimeAt(8),
          .outcome = static_cast<RunOutcome>(row.Int(9)),
          .owner = row.Bytes(10),
          .snapshot = row.Bytes(11),
          .consistency = row.Bytes(12),
          .bytes_read = static_cast<uint64_t>(row.Int(13)),
          .bytes_stored = static_cast<uint64_t>(row.Int(14)),
          .freeze_us = static_cast<uint64_t>(row.Int(15)),
          .pause_us = static_cast<uint64_t>(row.Int(16)),
          .message = row.Bytes(17)};
}

template <typename... More>
absl::Status BindRun(Statement& statement, const CatalogRun& run, const More&... more) {
  return statement.Bind(
      absl::string_view(run.schedule), absl::string_view(run.kind), absl::string_view(run.session),
      absl::ToUnixNanos(run.planned), absl::ToUnixNanos(run.planned_until), static_cast<int64_t>(run.occurrences),
      run.started, run.ended, static_cast<int64_t>(run.outcome), absl::string_view(run.owner),
      absl::string_view(run.snapshot), absl::string_view(run.consistency), static_cast<int64_t>(run.bytes_read),
      static_cast<int64_t>(run.bytes_stored), static_cast<int64_t>(run.freeze_us), static_cast<int64_t>(run.pause_us),
      absl::string_view(run.message), more...);
}

}  // namespace

absl::StatusOr<int64_t> Catalog::AddRun(const CatalogRun& run) {
  STILL_ASSIGN_OR_RETURN(CatalogTransaction change, Begin());
  {
    STILL_ASSIGN_OR_RETURN(Statement insert,
                           writer_->Prepare("INSERT INTO run (" STILL_RUN_COLUMNS
                                            ") VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"));
    STILL_RETURN_IF_ERROR(BindRun(insert, run));
    STILL_RETURN_IF_ERROR(insert.Run());
  }
  const int64_t id = writer_->last_insert_id();
  STILL_RETURN_IF_ERROR(change.Commit());
  return id;
}

absl::Status Catalog::UpdateRun(const CatalogRun& run) {
  STILL_ASSIGN_OR_RETURN(CatalogTransaction change, Begin());
  {
    STILL_ASSIGN_OR_RETURN(Statement update,
                           writer_->Prepare("UPDATE run SET (" STILL_RUN_COLUMNS
                                            ") = (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) WHERE id = ?"));
    STILL_RETURN_IF_ERROR(BindRun(update, run, run.id));
    STILL_RETURN_IF_ERROR(update.Run());
  }
  if (writer_->changes() == 0) return absl::NotFoundError(absl::StrCat("there is no run ", run.id));
  return change.Commit();
}

absl::StatusOr<std::vector<CatalogRun>> Catalog::ListRuns(const RunQuery& query) {
  absl::MutexLock lock(&reading_);
  STILL_ASSIGN_OR_RETURN(
      Statement select,
      reader_->Prepare("SELECT id, " STILL_RUN_COLUMNS " FROM run WHERE (?1 = '' OR schedule = ?1) AND "
                       "(?2 = '' OR session = ?2) AND (?3 IS NULL OR outcome = ?3) ORDER BY id DESC LIMIT ?4"));
  std::optional<int64_t> outcome;
  if (query.outcome.has_value()) outcome = static_cast<int64_t>(*query.outcome);
  STILL_RETURN_IF_ERROR(
      select.Bind(absl::string_view(query.schedule), absl::string_view(query.session), outcome, query.limit));
  std::vector<CatalogRun> runs;
  for (;;) {
    STILL_ASSIGN_OR_RETURN(bool row, select.Step());
    if (!row) return runs;
    runs.push_back(RunFrom(select));
  }
}

absl::StatusOr<std::optional<CatalogRun>> Catalog::FindRun(int64_t id) {
  absl::MutexLock lock(&reading_);
  STILL_ASSIGN_OR_RETURN(Statement select, reader_->Prepare("SELECT id, " STILL_RUN_COLUMNS " FROM run WHERE id = ?"));
  STILL_RETURN_IF_ERROR(select.Bind(id));
  STILL_ASSIGN_OR_RETURN(bool found, select.Step());
  if (!found) return std::nullopt;
  return RunFrom(select);
}

absl::StatusOr<std::vector<RunCursor>> Catalog::RunCursors() {
  absl::MutexLock lock(&reading_);
  STILL_ASSIGN_OR_RETURN(Statement select, reader_->Prepare("SELECT schedule, session, max(planned_until) FROM run "
                                                            "GROUP BY schedule, session ORDER BY schedule, session"));
  std::vector<RunCursor> cursors;
  for (;;) {
    STILL_ASSIGN_OR_RETURN(bool row, select.Step());
    if (!row) return cursors;
    cursors.push_back(
        {.schedule = select.Bytes(0), .session = select.Bytes(1), .planned_until = absl::FromUnixNanos(select.Int(2))});
  }
}

absl::Status Catalog::TrimRuns(absl::Time before) {
  STILL_ASSIGN_OR_RETURN(CatalogTransaction change, Begin());
  {
    STILL_ASSIGN_OR_RETURN(
        Statement trim, writer_->Prepare("DELETE FROM run WHERE ended < ? AND id NOT IN "
                                         "(SELECT max(id) FROM run WHERE occurrences > 0 GROUP BY schedule, session)"));
    STILL_RETURN_IF_ERROR(trim.Bind(absl::ToUnixNanos(before)));
    STILL_RETURN_IF_ERROR(trim.Run());
  }
  return change.Commit();
}

absl::Status Catalog::Remember(absl::string_view key, absl::string_view value) {
  STILL_ASSIGN_OR_RETURN(CatalogTransaction change, Begin());
  if (value.empty()) {
    STILL_ASSIGN_OR_RETURN(Statement forget, writer_->Prepare("DELETE FROM remembered WHERE key = ?"));
    STILL_RETURN_IF_ERROR(forget.Bind(key));
    STILL_RETURN_IF_ERROR(forget.Run());
  } else {
    STILL_ASSIGN_OR_RETURN(Statement put, writer_->Prepare("INSERT INTO remembered (key, value) VALUES (?, ?) "
                                                           "ON CONFLICT (key) DO UPDATE SET value = excluded.value"));
    STILL_RETURN_IF_ERROR(put.Bind(key, value));
    STILL_RETURN_IF_ERROR(put.Run());
  }
  return change.Commit();
}

absl::StatusOr<std::map<std::string, std::string>> Catalog::Remembered() {
  absl::MutexLock lock(&reading_);
  STILL_ASSIGN_OR_RETURN(Statement select, reader_->Prepare("SELECT key, value FROM remembered"));
  std::map<std::string, std::string> all;
  for (;;) {
    STILL_ASSIGN_OR_RETURN(bool row, select.Step());
    if (!row) return all;
    all[select.Bytes(0)] = select.Bytes(1);
  }
}

}  // namespace still::store
