// The book's schema. docs/format/book.md describes the tables; each version has a golden file in tests/golden/book.
#pragma once

#include "store/sqlite/sqlite.h"

namespace still::store {

extern const DatabaseKind kBookKind;

}  // namespace still::store
