// Verify: proves that what the manifests promise is there, by ids from the root down, and with read_data to the bytes.
#pragma once

#include "base/status.h"
#include "store/maintenance.h"
#include "store/repository_state.h"
#include "store/verify/damage.h"

namespace still::store {

// An error only when the verification itself could not be done; damage is in the report.
absl::StatusOr<VerifyReport> VerifyRepository(RepositoryState& state, const VerifyOptions& options, Damage& damage);

}  // namespace still::store
