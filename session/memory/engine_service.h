// The engine's side of its protocol: what still-memory does.
#pragma once

#include "base/fd.h"
#include "base/status.h"
#include "session/memory/memory_saver.h"

namespace still::session {

// Serves one MemorySaver until the other end closes the socket. Blocks.
absl::Status ServeEngine(int socket, MemorySaver& saver);

}  // namespace still::session
