// The catalog's schema and how it comes up to date. docs/format/catalog.md describes the tables.
//
// A database says in user_version which version it has; kCatalogMigrations[n] leads from version n to n + 1, and the
// first of them from nothing to 1. They are never edited once released: what a version looked like is frozen, and each
// has a golden file in tests/golden/catalog.
#pragma once

#include "absl/types/span.h"
#include "base/status.h"
#include "store/catalog/sqlite.h"

namespace still::store {

extern const absl::Span<const char* const> kCatalogMigrations;

// application_id of our files (SQLite's file format, "The Database Header"): "Stil".
inline constexpr int64_t kCatalogApplicationId = 0x5374696c;

// Brings `db` up to version migrations.size() in one transaction: a crash or an error leaves the old version. Several
// processes may do it at once. FAILED_PRECONDITION when the file is newer, or belongs to another application.
absl::Status MigrateCatalog(Database& db, absl::Span<const char* const> migrations = kCatalogMigrations);

}  // namespace still::store
