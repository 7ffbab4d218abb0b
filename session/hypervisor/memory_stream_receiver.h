// What a memory stream is taken apart into, whichever way it was made (memory_stream.h).
#pragma once

#include <cstdint>

#include "absl/strings/string_view.h"
#include "base/status.h"

namespace still::session {

// Takes a memory stream apart: the main memory block as pages with their addresses, the rest as bytes to keep verbatim.
class MemoryStreamReceiver {
 public:
  virtual ~MemoryStreamReceiver() = default;
  // Called once, before any page. `size`: of the main memory block in bytes.
  virtual absl::Status OnMemorySize(uint64_t size) = 0;
  // `data` is a whole number of 4 KiB pages, valid during the call. Pages come in any order; a later call for an
  // address replaces an earlier one. What is never reported is zero.
  virtual absl::Status OnPages(uint64_t offset, absl::string_view data) = 0;
  // Called at most once, right after OnMemorySize: what is not reported is not zero, but as at CaptureOptions::base_memory.
  virtual absl::Status OnIncrement() { return absl::UnimplementedError("an increment of a memory is not expected"); }
  // A page that is zero now; only reported when it may have been something else before.
  virtual absl::Status OnZeroPage(uint64_t offset) = 0;
  // The next bytes of the device state: the stream without the main block's pages, which IncomingState takes back.
  virtual absl::Status OnDeviceState(absl::string_view data) = 0;
};

}  // namespace still::session
