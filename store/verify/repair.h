// Repair: sets aside what is broken, keeps what is whole, and says exactly what is lost.
#pragma once

#include "base/status.h"
#include "store/maintenance.h"
#include "store/repository_state.h"

namespace still::store {

// Takes the exclusive lease: UNAVAILABLE while anybody else uses the repository. Nothing is deleted: what is broken
// goes to quarantine/.
absl::StatusOr<RepairReport> RepairRepository(RepositoryState& state, const RepairOptions& options);

}  // namespace still::store
