// Snapshots that have vanished: their manifests are gone though nobody has forgotten them (docs/format/repository.md, "Nothing
// vanishes in silence"). Known to whoever knew them before: the catalog keeps what it had of each.
#pragma once

#include <string>
#include <vector>

#include "base/status.h"
#include "store/catalog/rows.h"
#include "store/repository_state.h"

namespace still::store {

// A snapshot's row as one of what has vanished.
CatalogVanished VanishedRow(const CatalogSnapshot& row, absl::Time noticed);
// As the catalog knows it, without those that somebody has forgotten since.
absl::StatusOr<std::vector<CatalogVanished>> FindVanished(RepositoryState& state);
// "before-upgrade (0123456789ab, of web on alpha)"
std::string Describe(const CatalogVanished& vanished);
// NOT_FOUND, with what can be done, when the reference is the name, or the beginning of the id, of one of them.
absl::Status CheckNotVanished(RepositoryState& state, absl::string_view reference);
// FAILED_PRECONDITION, naming them and what to do, when there are any: the data of these snapshots looks unused.
absl::Status CheckNothingVanished(RepositoryState& state);
// Whether what it begins with is in some pack. An older copy of a repository has not what came later.
absl::StatusOr<bool> HasItsData(RepositoryState& state, const CatalogVanished& vanished);
// Writes the manifest that the catalog has. DATA_LOSS: it is damaged there.
absl::Status PutBack(RepositoryState& state, const CatalogVanished& vanished);

}  // namespace still::store
