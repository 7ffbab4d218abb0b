// How the command shows lazily restored disks.
#pragma once

#include <optional>
#include <string>

#include "proto/session.pb.h"

namespace still::cli {

// "lazy", "hydrating 43%" or "held"; nothing when the session's disks are complete.
std::optional<std::string> LazyDiskState(const stillpoint::session::v1::DescribeResponse& description);

}  // namespace still::cli
