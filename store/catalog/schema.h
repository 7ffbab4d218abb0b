// The catalog's schema. docs/format/catalog.md describes the tables; each version has a golden file in
// tests/golden/catalog.
//
// Versions 1 to 3 also made `schedule`, `job`, `drill`, `run` and `remembered`. Nothing is written into them any more:
// the book (store/book) has taken over what they held, and reads it from there once.
#pragma once

#include "store/sqlite/sqlite.h"

namespace still::store {

extern const DatabaseKind kCatalogKind;

}  // namespace still::store
