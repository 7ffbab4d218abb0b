#include "store/book/schema.h"

namespace still::store {
namespace {

// Times are nanoseconds since 1970. An index ends with the row's id by itself: what is asked for newest first needs no
// column more.
constexpr char kVersion1[] = R"sql(
CREATE TABLE schedule (
  name       TEXT PRIMARY KEY CHECK (name <> ''),
  session    TEXT NOT NULL,
  timing     TEXT NOT NULL,
  retention  TEXT NOT NULL,
  enabled    INTEGER NOT NULL,
  next_run   INTEGER,
  last_run   INTEGER,
  settings   TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE run (
  id             INTEGER PRIMARY KEY AUTOINCREMENT,
  schedule       TEXT NOT NULL,
  kind           TEXT NOT NULL,
  session        TEXT NOT NULL,
  planned        INTEGER NOT NULL,
  planned_until  INTEGER NOT NULL,
  occurrences    INTEGER NOT NULL,
  started        INTEGER,
  ended          INTEGER,
  outcome        INTEGER NOT NULL,
  owner          TEXT NOT NULL,
  snapshot       TEXT NOT NULL,
  consistency    TEXT NOT NULL,
  bytes_read     INTEGER NOT NULL,
  bytes_stored   INTEGER NOT NULL,
  freeze_us      INTEGER NOT NULL,
  pause_us       INTEGER NOT NULL,
  message        TEXT NOT NULL
) STRICT;
CREATE INDEX run_by_pair ON run(schedule, session, planned_until);
CREATE INDEX run_by_schedule ON run(schedule);
CREATE INDEX run_by_session ON run(session);
CREATE INDEX run_by_outcome ON run(outcome);

CREATE TABLE drill (
  id             INTEGER PRIMARY KEY AUTOINCREMENT,
  snapshot       TEXT NOT NULL,
  snapshot_name  TEXT NOT NULL,
  session        TEXT NOT NULL,
  place          TEXT NOT NULL,
  state          INTEGER NOT NULL,
  started        INTEGER NOT NULL,
  ended          INTEGER,
  restored       INTEGER NOT NULL,
  "check"        TEXT NOT NULL,
  exit_code      INTEGER,
  message        TEXT NOT NULL
) STRICT;
CREATE INDEX drill_by_session ON drill(session);

CREATE TABLE remembered (
  key    TEXT PRIMARY KEY,
  value  TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE imported (
  repository  TEXT PRIMARY KEY
) STRICT, WITHOUT ROWID;
)sql";

constexpr const char* kMigrations[] = {kVersion1};

}  // namespace

const DatabaseKind kBookKind = {.noun = "book",
                                .mend = "move it away, and add the schedules again (docs/operations.md, \"The book\")",
                                .application_id = 0x5374696b,  // "Stik"
                                .migrations = kMigrations};

}  // namespace still::store
