// HostIdentity: which host something belongs to. The id lies in the state directory and is made when it is first asked
// for, so two state directories are two hosts, also on one machine; the name is for people and may be anybody's.
#pragma once

#include <string>

#include "base/status.h"

namespace still {

struct HostIdentity {
  std::string id;  // 32 hex digits; empty: nobody's in particular.
  std::string name;
  bool operator==(const HostIdentity&) const = default;
};

// What the kernel calls this host; "unknown" when it does not say.
std::string HostName();

// Reads <state_directory>/host-id, or makes it: of several who do so at once all get the same. Where it can neither be
// read nor made (a user who may only look), the id is empty. DATA_LOSS: the file holds no id.
absl::StatusOr<HostIdentity> ReadHostIdentity(const std::string& state_directory);

}  // namespace still
