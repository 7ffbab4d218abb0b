-- A catalog of version 7: what has vanished, and leases that were in the way. Frozen: never edit or regenerate this file.
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

ALTER TABLE snapshot ADD COLUMN sequence INTEGER;
ALTER TABLE snapshot ADD COLUMN host_id TEXT NOT NULL DEFAULT '';
ALTER TABLE snapshot ADD COLUMN machine_id TEXT NOT NULL DEFAULT '';
DROP INDEX snapshot_by_point;
CREATE INDEX snapshot_by_commit ON snapshot(sequence, committed, id);
ALTER TABLE snapshot ADD COLUMN host TEXT NOT NULL DEFAULT '';
ALTER TABLE snapshot ADD COLUMN level INTEGER NOT NULL DEFAULT 0;
ALTER TABLE snapshot ADD COLUMN logical INTEGER NOT NULL DEFAULT 0;
CREATE INDEX snapshot_summary ON snapshot(session, sequence, committed, id, name, session_id, host_id, host, machine_id,
                                          point, level, logical);
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

INSERT INTO pack VALUES (1, x'11111111111111111111111111111111', 2, 1048576, 1699999999000000000, 0, 1, 4096,
  x'686f6f6b73', 1700000001000000000);
INSERT INTO node VALUES (x'2222222222222222222222222222222222222222222222222222222222222222', 1, 5);
INSERT INTO snapshot VALUES ('00112233445566778899aabbccddeeff', 'before-upgrade', 'web', 'a1', 1700000000000000000,
  1700000000500000000, 1, x'0a00ff', 2, '0123456789abcdef0123456789abcdef', 'fedcba9876543210fedcba9876543210', 'alpha', 2, 4294967296);
INSERT INTO snapshot VALUES ('ffeeddccbbaa99887766554433221100', NULL, 'db', 'b2', 1600000000000000000,
  1600000000500000000, 2, x'', 1, '', '', 'alpha', 1, 0);
INSERT INTO label VALUES ('00112233445566778899aabbccddeeff', 'keep', 'for ever');
INSERT INTO image VALUES ('00112233445566778899aabbccddeeff', 'vda', 1, 4294967296,
  x'2222222222222222222222222222222222222222222222222222222222222222', 'still-1');
INSERT INTO schedule VALUES ('nightly', 'web', 'daily 02:00', 'daily=7', 1, 1700000002000000000, NULL, '{"kind":"KIND_CAPTURE"}');
INSERT INTO run VALUES (1, 'nightly', 'capture', 'web', 1700000000000000000, 1700000000000000000, 1, 1700000000100000000,
  1700000003000000000, 2, '', '00112233445566778899aabbccddeeff', 'filesystem', 4096, 512, 21000, 2100, '');
INSERT INTO remembered VALUES ('alert/stale/nightly/web', '1700000000');
INSERT INTO job VALUES (1, 'capture', 'web', 2, '', 1700000000000000000, 1700000003000000000, 5, 5, 'stored 5 MiB');
INSERT INTO drill VALUES (1, '00112233445566778899aabbccddeeff', 'before-upgrade', 'web', 'drill-0a1b2c3d', 3,
  1700000000000000000, 1700000009000000000, 4000000000, 'systemctl is-system-running', 1, 'degraded');
UPDATE listing SET stamp = x'736e617073686f7473', changes = 7 WHERE folder = 'snapshots/';
INSERT INTO vanished VALUES ('99887766554433221100ffeeddccbbaa', 'lost', 'web', 'alpha', 1700000004000000000, x'0a0101');
INSERT INTO sighting VALUES ('locks/0123456789ab', x'', '5f1c7f52-0e1c-4c9c-9d0c-4b8e6c1c3a11', 3600000000000);
UPDATE listing SET changes = 1 WHERE folder = 'forgotten/';
PRAGMA application_id = 1400138092;
PRAGMA user_version = 7;
