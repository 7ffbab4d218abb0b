// QgaClient: asks QEMU's own guest agent (qemu-ga) to thaw a guest whose still-agent does not answer.
//
// The protocol is that of QEMU's docs/interop/qemu-ga-ref: one JSON object a line, over a virtio-serial port. Nobody says
// whether there is an agent at the other end, or what earlier callers left in between: so every call begins with
// guest-sync-delimited, whose answer comes after a byte 0xFF that is in no JSON. The guest is not trusted: what it sends is
// bounded in size and in time, and only a number is taken from it.
#pragma once

#include <cstdint>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/fd.h"
#include "base/status.h"
#include "nlohmann/json_fwd.hpp"

namespace still::session {

// Thread-safe; one call at a time.
class QgaClient {
 public:
  // `channel`: the host's end of the port, a connected stream socket.
  explicit QgaClient(OwnedFd channel) : channel_(std::move(channel)) {}

  // Thaws every file system, whoever froze it, and says how many were frozen. guest-fsfreeze-status is not asked: qemu-ga
  // knows of its own freezes only. UNAVAILABLE: nobody answers; FAILED_PRECONDITION: it refuses, with its words.
  absl::StatusOr<uint32_t> Thaw(absl::Duration timeout);

 private:
  absl::Status Synchronize(absl::Duration deadline) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Send(const nlohmann::json& request, bool delimited) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The next line, without its end. What stands before a 0xFF in it is dropped.
  absl::StatusOr<std::string> ReadLine(absl::Duration deadline) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  absl::Mutex mutex_;
  const OwnedFd channel_;
  std::string received_ ABSL_GUARDED_BY(mutex_);  // And not yet taken as a line.
};

}  // namespace still::session
