// What commands do about snapshots that have vanished (store::Repository::Vanished).
#pragma once

#include <string>
#include <vector>

#include "base/status.h"
#include "store/repository.h"

namespace still::cli {

// On standard error, a line each.
absl::Status WarnOfVanished(store::Repository& repository);
// Takes out of `references` those that mean vanished snapshots, by name or id, and gives their ids. What is there comes first.
absl::StatusOr<std::vector<std::string>> TakeVanished(store::Repository& repository,
                                                      std::vector<std::string>& references);

}  // namespace still::cli
