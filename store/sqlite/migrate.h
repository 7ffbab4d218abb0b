// How a database of ours comes up to date: by the migrations of its kind, from the version that its user_version says.
#pragma once

#include "absl/types/span.h"
#include "base/status.h"
#include "store/sqlite/sqlite.h"

namespace still::store {

// Brings `db` up to version migrations.size() in one transaction: a crash or an error leaves the old version. Several
// processes may do it at once. FAILED_PRECONDITION when the file is newer, or belongs to another application.
absl::Status Migrate(Database& db, absl::Span<const char* const> migrations);
inline absl::Status Migrate(Database& db) { return Migrate(db, db.kind().migrations); }

}  // namespace still::store
