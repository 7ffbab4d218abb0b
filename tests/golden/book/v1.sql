-- A book of version 1. Frozen: never edit or regenerate this file.
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

INSERT INTO schedule VALUES ('nightly', 'web', 'daily 02:00', 'daily=7', 1, 1700000002000000000, NULL, '{"kind":"KIND_CAPTURE"}');
INSERT INTO run VALUES (1, 'nightly', 'capture', 'web', 1700000000000000000, 1700000000000000000, 1, 1700000000100000000,
  1700000003000000000, 2, '', '00112233445566778899aabbccddeeff', 'filesystem', 4096, 512, 21000, 2100, '');
INSERT INTO drill VALUES (1, '00112233445566778899aabbccddeeff', 'before-upgrade', 'web', 'drill-0a1b2c3d', 3,
  1700000000000000000, 1700000009000000000, 4000000000, 'systemctl is-system-running', 1, 'degraded');
INSERT INTO remembered VALUES ('alert/stale/nightly/web', '1700000000');
INSERT INTO imported VALUES ('00112233445566778899aabbccddeeff');
PRAGMA application_id = 1400138091;
PRAGMA user_version = 1;
