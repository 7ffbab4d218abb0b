// Standard input and output as a careful program has them.
#pragma once

namespace still::cli {

// Whoever closed one of the three (`>&-`) must not find the first file that is opened in its place: written to as if it were
// standard output. What was closed stays an error for whoever uses it. And std::cout remembers why it could not write.
void PrepareStandardStreams();

// Writes out what was printed. 0, or the errno of what could not be written: a full disk must not end with success.
int FlushStandardOutput();

}  // namespace still::cli
