// Standard input and output as a careful program has them.
#pragma once

#include "absl/strings/string_view.h"

namespace still::cli {

// Whoever closed one of the three (`>&-`) must not find the first file that is opened in its place: written to as if it were
// standard output. What was closed stays an error for whoever uses it. And std::cout remembers why it could not write.
void PrepareStandardStreams();

// Writes out what was printed. 0, or the errno of what could not be written: a full disk must not end with success. The
// program's end says why, and 141 for a closed pipe: a command that is done with it just returns.
int FlushStandardOutput();
// Bytes of somebody else's, as they come, behind what was printed. False: they cannot be written, nor what comes next.
bool WriteStandardOutput(absl::string_view bytes);
// Likewise; the errno that says why not, or 0.
int WriteStandardError(absl::string_view bytes);

}  // namespace still::cli
