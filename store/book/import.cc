// Book: taking over what versions without a book kept in a repository's catalog.
//
// The catalog's own tables are read where they lie (schema versions 1 to 3, tests/golden/catalog), by a connection that
// has both files; only the book is written, in one transaction.
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/substitute.h"
#include "base/log.h"
#include "store/book/book.h"
#include "store/book/schema.h"
#include "store/catalog/catalog.h"
#include "store/sqlite/sqlite.h"

namespace still::store {
namespace {

constexpr absl::Duration kImportTimeout = absl::Seconds(30);

// What is read from one catalog, which is attached under the name $0. A run's id is the name of its worker's lock, and it
// may be under way: into a new book runs come with their ids.
constexpr char kTakeOver[] = R"sql(
CREATE TEMP TABLE book AS SELECT NOT EXISTS (SELECT 1 FROM main.run) AS is_new;
INSERT INTO main.schedule (name, session, timing, retention, enabled, next_run, last_run, settings)
  SELECT name, session, timing, retention, enabled, next_run, last_run, settings FROM $0.schedule WHERE true
  ON CONFLICT (name) DO NOTHING;
INSERT INTO main.run (id, schedule, kind, session, planned, planned_until, occurrences, started, ended, outcome, owner,
                      snapshot, consistency, bytes_read, bytes_stored, freeze_us, pause_us, message)
  SELECT iif((SELECT is_new FROM temp.book), id, NULL), schedule, kind, session, planned, planned_until, occurrences,
         started, ended, outcome, owner, snapshot, consistency, bytes_read, bytes_stored, freeze_us, pause_us, message
  FROM $0.run ORDER BY id;
INSERT INTO main.drill (snapshot, snapshot_name, session, place, state, started, ended, restored, "check", exit_code,
                        message)
  SELECT snapshot, snapshot_name, session, place, state, started, ended, restored, "check", exit_code, message
  FROM $0.drill ORDER BY id;
INSERT INTO main.remembered (key, value) SELECT key, value FROM $0.remembered WHERE true ON CONFLICT (key) DO NOTHING;
DROP TABLE temp.book;
)sql";

std::string AttachedName(size_t catalog) { return absl::StrCat("old", catalog); }

// Within a transaction of `db`.
absl::StatusOr<bool> Imported(Database& db, const std::string& repository_id) {
  STILL_ASSIGN_OR_RETURN(Statement done, db.Prepare("SELECT 1 FROM imported WHERE repository = ?"));
  STILL_RETURN_IF_ERROR(done.Bind(absl::string_view(repository_id)));
  return done.Step();
}

absl::Status TakeOver(Database& db, const std::string& repository_id, size_t catalogs) {
  STILL_ASSIGN_OR_RETURN(bool imported, Imported(db, repository_id));
  if (imported) return absl::OkStatus();  // By another process, meanwhile.
  for (size_t i = 0; i < catalogs; ++i) {
    STILL_RETURN_IF_ERROR(db.Execute(absl::Substitute(kTakeOver, AttachedName(i)).c_str()));
  }
  STILL_ASSIGN_OR_RETURN(Statement put, db.Prepare("INSERT INTO imported (repository) VALUES (?)"));
  STILL_RETURN_IF_ERROR(put.Bind(absl::string_view(repository_id)));
  return put.Run();
}

}  // namespace

absl::Status Book::ImportOnce(const std::string& repository_id, const std::vector<std::string>& catalogs) {
  {
    absl::MutexLock lock(&reading_);
    STILL_ASSIGN_OR_RETURN(bool imported, Imported(*reader_, repository_id));
    if (imported) return absl::OkStatus();
  }
  STILL_ASSIGN_OR_RETURN(Database db, Database::Open(path_, kBookKind, kImportTimeout));
  for (size_t i = 0; i < catalogs.size(); ++i) {
    // With its own migrations first: then it has all the tables.
    STILL_RETURN_IF_ERROR(Annotate(Catalog::Open({.path = catalogs[i]}).status(), "schedules of an older version"));
    STILL_ASSIGN_OR_RETURN(Statement attach, db.Prepare("ATTACH ?1 AS ?2"));
    const std::string name = AttachedName(i);
    STILL_RETURN_IF_ERROR(attach.Bind(absl::string_view(catalogs[i]), absl::string_view(name)));
    STILL_RETURN_IF_ERROR(attach.Run());
  }
  STILL_RETURN_IF_ERROR(db.Execute("BEGIN IMMEDIATE"));
  absl::Status taken = TakeOver(db, repository_id, catalogs.size());
  if (taken.ok()) taken = db.Execute("COMMIT");
  if (taken.ok()) {
    LogInfo("the book has taken over what the catalog held", {{"book", path_}, {"repository", repository_id}});
    return absl::OkStatus();
  }
  (void)db.Execute("ROLLBACK");  // Fails only when it is undone already.
  return taken;
}

}  // namespace still::store
