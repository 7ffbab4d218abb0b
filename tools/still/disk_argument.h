// How a disk file is written on the command line.
#pragma once

#include <string>

#include "base/status.h"
#include "proto/aliases.h"
#include "proto/session.pb.h"

namespace still::cli {

// Adds "PATH[,name=vda][,format=raw|qcow2][,ro][,serial=S]" to a configuration. The name is that of the image in a
// snapshot; the first disk is called vda.
absl::Status AddDisk(const std::string& text, sessionpb::SessionConfig& config);

}  // namespace still::cli
