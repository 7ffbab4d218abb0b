// Which snapshot a user means (store/repository.h, FindSnapshot). Pure: no repository, no clock.
#pragma once

#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/status.h"
#include "proto/manifest.pb.h"

namespace still::store {

// `snapshots`: oldest point first. The index of the one that is meant. NOT_FOUND suggests a name that is near;
// FAILED_PRECONDITION lists what it could be.
absl::StatusOr<size_t> ResolveSnapshot(const std::vector<stillpoint::manifest::v1::Snapshot>& snapshots,
                                       absl::string_view reference, absl::Time now);

// False: the reference found this snapshot by the beginning of its name alone. Enough to look at it, not to remove it:
// a script that removes "web" twice must not remove "web-2" the second time.
bool NamedInFull(const stillpoint::manifest::v1::Snapshot& snapshot, absl::string_view reference);

}  // namespace still::store
