// What the catalog asks of snapshots, where a test can see how SQLite means to answer (catalog_plan_test.cc).
#pragma once

namespace still::store {

#define STILL_SNAPSHOT_COLUMNS                                                                                  \
  "id, ifnull(name, ''), session, session_id, point, committed, kind, manifest, ifnull(sequence, 0), host_id, " \
  "machine_id, host, level, logical"

// Each is answered by an index alone, or by one that leads to the few rows that are wanted.
inline constexpr char kSnapshotsOfSession[] =
    "SELECT " STILL_SNAPSHOT_COLUMNS " FROM snapshot WHERE session = ? ORDER BY sequence, committed, id";
inline constexpr char kSummaries[] =
    "SELECT id, ifnull(name, ''), session, session_id, host_id, host, machine_id, ifnull(sequence, 0), committed, "
    "point, "
    "level, logical FROM snapshot INDEXED BY snapshot_summary ORDER BY session, sequence, committed, id";
inline constexpr char kSnapshotNames[] = "SELECT id, ifnull(name, '') FROM snapshot INDEXED BY snapshot_summary";

}  // namespace still::store
