// Exec: runs one program and streams what it prints.
#pragma once

#include <functional>

#include "base/status.h"
#include "proto/guest.pb.h"

namespace still::agent {

namespace pb = ::stillpoint::guest::v1;

// Blocks until the program has ended. `send` is called from this thread with parts of at most 64 KiB and at the end
// with `exit`; when it returns false (nobody listens any more) the program's process group is killed. `cancelled` is
// asked every few milliseconds, also while `send` blocks behind a slow reader. The program runs in a session of its
// own; processes that it leaves behind when it ends by itself stay, and their later output is dropped.
//
// INVALID_ARGUMENT: a limit of guest.proto is exceeded. NOT_FOUND: no such program. ABORTED: cancelled.
absl::Status RunCommandStreaming(const pb::ExecRequest& request, const std::function<bool(const pb::ExecOutput&)>& send,
                                 const std::function<bool()>& cancelled);

}  // namespace still::agent
