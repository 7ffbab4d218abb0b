// Where two images differ, in time proportional to the difference: equal ids are skipped at every level.
#pragma once

#include <vector>

#include "base/status.h"
#include "store/image/image_reader.h"
#include "store/image/tree_reader.h"

namespace still::store {

// In whole blocks, except at the larger image's end; in order.
absl::StatusOr<std::vector<ImageRange>> DiffTrees(PackSet& packs, TreeReader& a, TreeReader& b, Scratch& scratch);

}  // namespace still::store
