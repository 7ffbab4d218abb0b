#include "store/sqlite/migrate.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "base/log.h"

namespace still::store {
namespace {

absl::Status Apply(Database& db, absl::Span<const char* const> migrations) {
  const std::string name = absl::StrCat(db.kind().noun, " ", db.path());
  STILL_ASSIGN_OR_RETURN(int64_t version, db.QueryInt("PRAGMA user_version"));
  STILL_ASSIGN_OR_RETURN(int64_t application, db.QueryInt("PRAGMA application_id"));
  STILL_ASSIGN_OR_RETURN(int64_t tables, db.QueryInt("SELECT count(*) FROM sqlite_schema"));
  const bool empty = version == 0 && application == 0 && tables == 0;
  if (!empty && application != db.kind().application_id) {
    return absl::FailedPreconditionError(absl::StrCat(name, ": a database, but not a ", db.kind().noun));
  }
  if (version < 0) {
    return absl::DataLossError(absl::StrCat(name, ": impossible version ", version, "; ", db.kind().mend));
  }
  const auto current = static_cast<int64_t>(migrations.size());
  if (version > current) {
    return absl::FailedPreconditionError(absl::StrCat(
        name, ": version ", version, " was written by a newer stillpoint; this one knows up to ", current));
  }
  if (version == current) return absl::OkStatus();
  for (int64_t from = version; from < current; ++from) {
    STILL_RETURN_IF_ERROR(db.Execute(migrations[static_cast<size_t>(from)]));
  }
  // A pragma takes no bound values; these are our own numbers.
  STILL_RETURN_IF_ERROR(db.Execute(
      absl::StrCat("PRAGMA application_id = ", db.kind().application_id, "; PRAGMA user_version = ", current).c_str()));
  if (version > 0) {
    LogInfo("database migrated", {{"kind", db.kind().noun}, {"path", db.path()}, {"from", version}, {"to", current}});
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Migrate(Database& db, absl::Span<const char* const> migrations) {
  // Nearly always there is nothing to do, and then nobody has to wait for whoever writes.
  STILL_ASSIGN_OR_RETURN(int64_t version, db.QueryInt("PRAGMA user_version"));
  STILL_ASSIGN_OR_RETURN(int64_t application, db.QueryInt("PRAGMA application_id"));
  if (version == static_cast<int64_t>(migrations.size()) && application == db.kind().application_id) {
    return absl::OkStatus();
  }
  // Immediate: of several processes that open a new file one makes the tables, and the others then find them.
  STILL_RETURN_IF_ERROR(db.Execute("BEGIN IMMEDIATE"));
  absl::Status status = Apply(db, migrations);
  if (status.ok()) status = db.Execute("COMMIT");
  // The rollback fails only if the transaction is gone already.
  if (!status.ok()) (void)db.Execute("ROLLBACK");
  return status;
}

}  // namespace still::store
