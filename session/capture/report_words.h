// How the names of protobuf's enumerations read in a report.
#pragma once

#include <string>

#include "absl/strings/ascii.h"

namespace still::session {

// "LEASE_EXPIRED" -> "lease expired"; "" for a value that this version does not know.
inline std::string PlainWords(std::string name) {
  for (char& c : name) c = c == '_' ? ' ' : absl::ascii_tolower(static_cast<unsigned char>(c));
  return name;
}

}  // namespace still::session
