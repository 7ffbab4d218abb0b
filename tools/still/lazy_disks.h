// How the command shows lazily restored disks.
#pragma once

#include <optional>
#include <string>

#include "proto/session.pb.h"

namespace still::cli {

// "held" when a disk holds the guest, lazily restored or not; else "lazy" or "hydrating 43%"; nothing when the session's
// disks are complete.
std::optional<std::string> LazyDiskState(const stillpoint::session::v1::DescribeResponse& description);

}  // namespace still::cli
