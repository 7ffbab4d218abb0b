// Book: the runs of schedules.
#include <array>
#include <string>

#include "absl/strings/str_cat.h"
#include "store/book/book.h"
#include "store/sqlite/sqlite.h"

namespace still::store {
namespace {

#define STILL_RUN_COLUMNS                                                                                    \
  "schedule, kind, session, planned, planned_until, occurrences, started, ended, outcome, owner, snapshot, " \
  "consistency, bytes_read, bytes_stored, freeze_us, pause_us, message"

RunRow RunFrom(const Statement& row) {
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
absl::Status BindRun(Statement& statement, const RunRow& run, const More&... more) {
  return statement.Bind(
      absl::string_view(run.schedule), absl::string_view(run.kind), absl::string_view(run.session),
      absl::ToUnixNanos(run.planned), absl::ToUnixNanos(run.planned_until), static_cast<int64_t>(run.occurrences),
      run.started, run.ended, static_cast<int64_t>(run.outcome), absl::string_view(run.owner),
      absl::string_view(run.snapshot), absl::string_view(run.consistency), static_cast<int64_t>(run.bytes_read),
      static_cast<int64_t>(run.bytes_stored), static_cast<int64_t>(run.freeze_us), static_cast<int64_t>(run.pause_us),
      absl::string_view(run.message), more...);
}

// The statement with only the conditions that are wanted, so that each finds its index: history is long.
const char* ListRunsSql(const RunQuery& query) {
  static const auto* const kStatements = [] {
    auto* statements = new std::array<std::string, 8>;
    for (size_t wanted = 0; wanted < statements->size(); ++wanted) {
      std::string& sql = (*statements)[wanted];
      sql = "SELECT id, " STILL_RUN_COLUMNS " FROM run WHERE true";
      if ((wanted & 1) != 0) sql += " AND schedule = ?1";
      if ((wanted & 2) != 0) sql += " AND session = ?2";
      if ((wanted & 4) != 0) sql += " AND outcome = ?3";
      sql += " ORDER BY id DESC LIMIT ?4";
    }
    return statements;
  }();
  const size_t wanted =
      (query.schedule.empty() ? 0 : 1) | (query.session.empty() ? 0 : 2) | (query.outcome.has_value() ? 4 : 0);
  return (*kStatements)[wanted].c_str();
}

}  // namespace

absl::StatusOr<int64_t> Book::AddRun(const RunRow& run) {
  absl::MutexLock lock(&writing_);
  STILL_ASSIGN_OR_RETURN(Statement insert,
                         writer_->Prepare("INSERT INTO run (" STILL_RUN_COLUMNS
                                          ") VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"));
  STILL_RETURN_IF_ERROR(BindRun(insert, run));
  STILL_RETURN_IF_ERROR(Change(insert));
  return writer_->last_insert_id();
}

absl::Status Book::UpdateRun(const RunRow& run) {
  absl::MutexLock lock(&writing_);
  STILL_ASSIGN_OR_RETURN(Statement update,
                         writer_->Prepare("UPDATE run SET (" STILL_RUN_COLUMNS
                                          ") = (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) WHERE id = ?"));
  STILL_RETURN_IF_ERROR(BindRun(update, run, run.id));
  STILL_RETURN_IF_ERROR(Change(update));
  if (writer_->changes() == 0) return absl::NotFoundError(absl::StrCat("there is no run ", run.id));
  return absl::OkStatus();
}

absl::StatusOr<std::vector<RunRow>> Book::ListRuns(const RunQuery& query) {
  absl::MutexLock lock(&reading_);
  STILL_ASSIGN_OR_RETURN(Statement select, Select(ListRunsSql(query)));
  std::optional<int64_t> outcome;
  if (query.outcome.has_value()) outcome = static_cast<int64_t>(*query.outcome);
  STILL_RETURN_IF_ERROR(
      select.Bind(absl::string_view(query.schedule), absl::string_view(query.session), outcome, query.limit));
  std::vector<RunRow> runs;
  for (;;) {
    STILL_ASSIGN_OR_RETURN(bool row, select.Step());
    if (!row) return runs;
    runs.push_back(RunFrom(select));
  }
}

absl::StatusOr<std::optional<RunRow>> Book::FindRun(int64_t id) {
  absl::MutexLock lock(&reading_);
  STILL_ASSIGN_OR_RETURN(Statement select, Select("SELECT id, " STILL_RUN_COLUMNS " FROM run WHERE id = ?"));
  STILL_RETURN_IF_ERROR(select.Bind(id));
  STILL_ASSIGN_OR_RETURN(bool found, select.Step());
  if (!found) return std::nullopt;
  return RunFrom(select);
}

absl::StatusOr<std::vector<RunCursor>> Book::RunCursors() {
  absl::MutexLock lock(&reading_);
  // Of each pair by the index run_by_pair, from its end: a book has millions of rows.
  STILL_ASSIGN_OR_RETURN(
      Statement select,
      Select("SELECT schedule, session, (SELECT planned_until FROM run WHERE schedule = pair.schedule "
             "AND session = pair.session AND occurrences > 0 ORDER BY planned_until DESC LIMIT 1) "
             "AS until FROM (SELECT DISTINCT schedule, session FROM run) AS pair "
             "WHERE until IS NOT NULL ORDER BY schedule, session"));
  std::vector<RunCursor> cursors;
  for (;;) {
    STILL_ASSIGN_OR_RETURN(bool row, select.Step());
    if (!row) return cursors;
    cursors.push_back(
        {.schedule = select.Bytes(0), .session = select.Bytes(1), .planned_until = absl::FromUnixNanos(select.Int(2))});
  }
}

absl::Status Book::TrimRuns(absl::Time before) {
  absl::MutexLock lock(&writing_);
  STILL_ASSIGN_OR_RETURN(
      Statement trim, writer_->Prepare("DELETE FROM run WHERE ended < ? AND id NOT IN "
                                       "(SELECT max(id) FROM run WHERE occurrences > 0 GROUP BY schedule, session)"));
  STILL_RETURN_IF_ERROR(trim.Bind(absl::ToUnixNanos(before)));
  return Change(trim);
}

}  // namespace still::store
