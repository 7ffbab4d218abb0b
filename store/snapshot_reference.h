// Which snapshot a user means (store/repository.h, FindSnapshot). Pure: no repository, no clock.
#pragma once

#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/status.h"
#include "proto/manifest.pb.h"

namespace still::store {

// `snapshots`: oldest point first. The index of the one that is meant.
absl::StatusOr<size_t> ResolveSnapshot(const std::vector<stillpoint::manifest::v1::Snapshot>& snapshots,
                                       absl::string_view reference, absl::Time now);

}  // namespace still::store
