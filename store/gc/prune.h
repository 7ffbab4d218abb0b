// Prune: gives back the space of what no snapshot uses (docs/format/repository.md, "Prune").
#pragma once

#include "base/status.h"
#include "store/maintenance.h"
#include "store/repository_state.h"

namespace still::store {

// Takes its own leases. May run beside captures; the sweep waits for a later prune when they are in the way.
absl::StatusOr<PruneReport> PruneRepository(RepositoryState& state, const PruneOptions& options);

}  // namespace still::store
