// CleanText: what somebody else says (a guest, a program in it), made fit to be logged, stored, sent on and printed.
#pragma once

#include <cstddef>
#include <string>

#include "absl/strings/string_view.h"

namespace still {

// At most `limit` bytes (at least 8) of valid UTF-8 on one line that moves no cursor, changes no colour and no direction
// of writing. A byte that is no UTF-8, a control character (C0, DEL, C1), a line separator and an invisible mark of
// direction become "\xNN" for each of their bytes, or "\n", "\r", "\t". What is too long is cut and ends in "...".
// What is clean stays as it is, so cleaning twice changes nothing.
std::string CleanText(absl::string_view text, size_t limit);

// The same for text of several lines, which stay lines ("\r\n" becomes "\n"); `limit` is each line's.
std::string CleanLines(absl::string_view text, size_t limit);

}  // namespace still
