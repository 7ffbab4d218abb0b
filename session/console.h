// What the guest wrote last on its console, for errors about guests that never answered.
#pragma once

#include <string>

namespace still::session {

// `its console ends with "..."`, or that it is empty. The guest's bytes, escaped and bounded. Blocks on the file system;
// thread-safe.
std::string DescribeConsoleEnd(const std::string& path);

}  // namespace still::session
