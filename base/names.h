// Names: those that people give, and those that file systems have.
//
// A file's name is bytes; what is stored about a snapshot is UTF-8 (protobuf strings, which no reader parses otherwise). So a
// name that comes from a file system is stored escaped, in a way that gives the bytes back, and a name that a person gives is
// refused with the reason when it cannot be stored, or when no reference could reach it.
//
//   EscapeName("caf\xe9.img")     -> "caf\\xe9.img"; what is UTF-8 stays as it is
//   CheckNewName("snapshot", "latest")  -> INVALID_ARGUMENT
//
// Pure functions.
#pragma once

#include <cstddef>
#include <string>

#include "absl/strings/string_view.h"
#include "base/status.h"

namespace still {

inline constexpr size_t kMaxNewName = 255;

// Well-formed (RFC 3629): what protobuf takes as a string.
bool IsUtf8(absl::string_view text);

// Each byte that is no UTF-8 becomes "\xNN", and so does a backslash that would otherwise be read as the beginning of such
// an escape. All else stays: names in UTF-8 are stored as they are.
std::string EscapeName(absl::string_view bytes);
// The bytes again: UnescapeName(EscapeName(x)) == x.
std::string UnescapeName(absl::string_view text);

// INVALID_ARGUMENT, with the reason and what to write instead, for a name that a snapshot or a machine must not have: none
// at all, more than kMaxNewName bytes, no UTF-8, control characters; what references give a meaning of its own
// (`latest`, the characters @ : / * ?, a "-" in front), and what looks like a whole id. `kind` is for the message.
absl::Status CheckNewName(absl::string_view kind, absl::string_view name);
// INVALID_ARGUMENT for text that is no UTF-8 or has control characters; it may be empty. `what` is for the message.
absl::Status CheckText(absl::string_view what, absl::string_view text);

}  // namespace still
