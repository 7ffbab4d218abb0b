// Book: restore drills.
#include "absl/strings/str_cat.h"
#include "store/book/book.h"
#include "store/sqlite/sqlite.h"

namespace still::store {
namespace {

std::optional<int64_t> ExitOf(const DrillRecord& drill) {
  if (!drill.exit_code.has_value()) return std::nullopt;
  return *drill.exit_code;
}

DrillRecord DrillFrom(const Statement& row) {
  DrillRecord drill = {.id = row.Int(0),
                       .snapshot_id = row.Bytes(1),
                       .snapshot_name = row.Bytes(2),
                       .session = row.Bytes(3),
                       .place = row.Bytes(4),
                       .state = static_cast<DrillState>(row.Int(5)),
                       .started = absl::FromUnixNanos(row.Int(6)),
                       .ended = row.TimeAt(7),
                       .restored = absl::Nanoseconds(row.Int(8)),
                       .check = row.Bytes(9),
                       .message = row.Bytes(11)};
  if (!row.IsNull(10)) drill.exit_code = static_cast<int>(row.Int(10));
  return drill;
}

}  // namespace

absl::StatusOr<int64_t> Book::AddDrill(const DrillRecord& drill) {
  absl::MutexLock lock(&writing_);
  STILL_ASSIGN_OR_RETURN(
      Statement insert,
      writer_->Prepare("INSERT INTO drill (snapshot, snapshot_name, session, place, state, started, ended, restored, "
                       "\"check\", exit_code, message) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"));
  STILL_RETURN_IF_ERROR(insert.Bind(absl::string_view(drill.snapshot_id), absl::string_view(drill.snapshot_name),
                                    absl::string_view(drill.session), absl::string_view(drill.place),
                                    static_cast<int64_t>(drill.state), absl::ToUnixNanos(drill.started), drill.ended,
                                    absl::ToInt64Nanoseconds(drill.restored), absl::string_view(drill.check),
                                    ExitOf(drill), absl::string_view(drill.message)));
  STILL_RETURN_IF_ERROR(Change(insert));
  return writer_->last_insert_id();
}

absl::Status Book::UpdateDrill(const DrillRecord& drill) {
  absl::MutexLock lock(&writing_);
  STILL_ASSIGN_OR_RETURN(
      Statement update,
      writer_->Prepare("UPDATE drill SET state = ?, ended = ?, restored = ?, exit_code = ?, message = ? WHERE id = ?"));
  STILL_RETURN_IF_ERROR(update.Bind(static_cast<int64_t>(drill.state), drill.ended,
                                    absl::ToInt64Nanoseconds(drill.restored), ExitOf(drill),
                                    absl::string_view(drill.message), drill.id));
  STILL_RETURN_IF_ERROR(Change(update));
  if (writer_->changes() == 0) return absl::NotFoundError(absl::StrCat("there is no drill ", drill.id));
  return absl::OkStatus();
}

absl::StatusOr<std::vector<DrillRecord>> Book::ListDrills(int64_t limit) {
  absl::MutexLock lock(&reading_);
  STILL_ASSIGN_OR_RETURN(Statement select,
                         Select("SELECT id, snapshot, snapshot_name, session, place, state, started, ended, restored, "
                                "\"check\", exit_code, message FROM drill ORDER BY id DESC LIMIT ?"));
  STILL_RETURN_IF_ERROR(select.Bind(limit));
  std::vector<DrillRecord> drills;
  for (;;) {
    STILL_ASSIGN_OR_RETURN(bool row, select.Step());
    if (!row) return drills;
    drills.push_back(DrillFrom(select));
  }
}

}  // namespace still::store
