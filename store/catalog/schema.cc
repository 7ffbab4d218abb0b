#include "store/catalog/schema.h"

namespace still::store {
namespace {

// Times are nanoseconds since 1970. Pack names and node ids are their raw bytes.
constexpr char kVersion1[] = R"sql(
CREATE TABLE pack (
  number     INTEGER PRIMARY KEY,
  name       BLOB NOT NULL UNIQUE CHECK (length(name) = 16),
  kind       INTEGER NOT NULL,
  size       INTEGER NOT NULL,
  created    INTEGER NOT NULL,
  blocks     INTEGER NOT NULL,
  nodes      INTEGER NOT NULL,
  overhead   INTEGER NOT NULL,
  hooks      BLOB NOT NULL,
  condemned  INTEGER
) STRICT;

CREATE TABLE node (
  id       BLOB NOT NULL CHECK (length(id) = 32),
  pack     INTEGER NOT NULL REFERENCES pack(number) ON DELETE CASCADE,
  ordinal  INTEGER NOT NULL,
  PRIMARY KEY (id, pack)
) STRICT, WITHOUT ROWID;
CREATE INDEX node_by_pack ON node(pack);

CREATE TABLE snapshot (
  id          TEXT PRIMARY KEY CHECK (length(id) = 32),
  name        TEXT UNIQUE CHECK (name <> ''),
  session     TEXT NOT NULL,
  session_id  TEXT NOT NULL,
  point       INTEGER NOT NULL,
  committed   INTEGER NOT NULL,
  kind        INTEGER NOT NULL,
  manifest    BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX snapshot_by_point ON snapshot(point, id);
CREATE INDEX snapshot_by_session ON snapshot(session_id, point);

CREATE TABLE label (
  snapshot  TEXT NOT NULL REFERENCES snapshot(id) ON DELETE CASCADE,
  key       TEXT NOT NULL,
  value     TEXT NOT NULL,
  PRIMARY KEY (snapshot, key)
) STRICT, WITHOUT ROWID;

CREATE TABLE image (
  snapshot  TEXT NOT NULL REFERENCES snapshot(id) ON DELETE CASCADE,
  name      TEXT NOT NULL,
  role      INTEGER NOT NULL,
  size      INTEGER NOT NULL,
  root      BLOB NOT NULL,
  bitmap    TEXT NOT NULL,
  PRIMARY KEY (snapshot, name)
) STRICT, WITHOUT ROWID;

CREATE VIEW session AS
  SELECT session AS name, session_id AS id, count(*) AS snapshots, min(point) AS first_point, max(point) AS last_point
  FROM snapshot GROUP BY session, session_id;

CREATE TABLE schedule (
  name       TEXT PRIMARY KEY CHECK (name <> ''),
  session    TEXT NOT NULL,
  timing     TEXT NOT NULL,
  retention  TEXT NOT NULL,
  enabled    INTEGER NOT NULL,
  next_run   INTEGER,
  last_run   INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE job (
  id        INTEGER PRIMARY KEY AUTOINCREMENT,
  kind      TEXT NOT NULL,
  subject   TEXT NOT NULL,
  state     INTEGER NOT NULL,
  owner     TEXT NOT NULL,
  started   INTEGER NOT NULL,
  ended     INTEGER,
  done      INTEGER NOT NULL,
  total     INTEGER NOT NULL,
  message   TEXT NOT NULL
) STRICT;
CREATE INDEX job_by_state ON job(state, id);
)sql";

constexpr char kVersion2[] = R"sql(
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
CREATE INDEX drill_by_session ON drill(session, id);
)sql";

// Everything about a schedule that has no column of its own, and a row for each of its runs.
constexpr char kVersion3[] = R"sql(
ALTER TABLE schedule ADD COLUMN settings TEXT NOT NULL DEFAULT '';

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
CREATE INDEX run_by_schedule ON run(schedule, session, planned_until);
CREATE INDEX run_by_outcome ON run(outcome, id);

CREATE TABLE remembered (
  key    TEXT PRIMARY KEY,
  value  TEXT NOT NULL
) STRICT, WITHOUT ROWID;
)sql";

// Whose a snapshot is, and the order of commits. NULL: its manifest was not asked yet (RepositoryState::OpenCatalog).
constexpr char kVersion4[] = R"sql(
ALTER TABLE snapshot ADD COLUMN sequence INTEGER;
ALTER TABLE snapshot ADD COLUMN host_id TEXT NOT NULL DEFAULT '';
ALTER TABLE snapshot ADD COLUMN machine_id TEXT NOT NULL DEFAULT '';
DROP INDEX snapshot_by_point;
CREATE INDEX snapshot_by_commit ON snapshot(sequence, committed, id);
)sql";

// What is asked of all snapshots again and again, in an index of its own: the table has the manifests between its rows. The
// new columns are filled as those of version 4 were.
constexpr char kVersion5[] = R"sql(
ALTER TABLE snapshot ADD COLUMN host TEXT NOT NULL DEFAULT '';
ALTER TABLE snapshot ADD COLUMN level INTEGER NOT NULL DEFAULT 0;
ALTER TABLE snapshot ADD COLUMN logical INTEGER NOT NULL DEFAULT 0;
UPDATE snapshot SET sequence = NULL;
CREATE INDEX snapshot_summary ON snapshot(session, sequence, committed, id, name, session_id, host_id, host, machine_id,
                                          point, level, logical);
)sql";

// When a folder of objects was last listed, so that nobody lists it again who finds it unchanged. Triggers, because every row
// that comes or goes makes it untrue, whoever writes it: a row that goes while its object stays must be found by the next
// listing.
constexpr char kVersion6[] = R"sql(
CREATE TABLE listing (
  folder   TEXT PRIMARY KEY,
  stamp    BLOB NOT NULL,
  changes  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO listing VALUES ('packs/', x'', 0), ('snapshots/', x'', 0);
CREATE TRIGGER pack_comes AFTER INSERT ON pack BEGIN
  UPDATE listing SET stamp = x'', changes = changes + 1 WHERE folder = 'packs/';
END;
CREATE TRIGGER pack_goes AFTER DELETE ON pack BEGIN
  UPDATE listing SET stamp = x'', changes = changes + 1 WHERE folder = 'packs/';
END;
CREATE TRIGGER snapshot_comes AFTER INSERT ON snapshot BEGIN
  UPDATE listing SET stamp = x'', changes = changes + 1 WHERE folder = 'snapshots/';
END;
CREATE TRIGGER snapshot_goes AFTER DELETE ON snapshot BEGIN
  UPDATE listing SET stamp = x'', changes = changes + 1 WHERE folder = 'snapshots/';
END;
)sql";

// What was known once and is not there any more, though nobody has forgotten it; and leases that were in somebody's way. The
// row of listing: whether notes of forgetting are asked for yet (`changes`). What goes before may have been forgotten by a
// version that wrote none.
constexpr char kVersion7[] = R"sql(
CREATE TABLE vanished (
  id        TEXT PRIMARY KEY CHECK (length(id) = 32),
  name      TEXT NOT NULL,
  session   TEXT NOT NULL,
  host      TEXT NOT NULL,
  noticed   INTEGER NOT NULL,
  manifest  BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE sighting (
  lease    TEXT PRIMARY KEY,
  content  BLOB NOT NULL,
  boot     TEXT NOT NULL,
  since    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO listing VALUES ('forgotten/', x'', 0);
)sql";

constexpr const char* kMigrations[] = {kVersion1, kVersion2, kVersion3, kVersion4, kVersion5, kVersion6, kVersion7};

}  // namespace

const DatabaseKind kCatalogKind = {.noun = "catalog",
                                   .mend = "run `still repair catalog` to rebuild it",
                                   .application_id = 0x5374696c,  // "Stil"
                                   .migrations = kMigrations};

}  // namespace still::store
