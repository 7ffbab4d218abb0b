// Takes the memory streams of all hypervisors apart, by the name of their format (VmDescription::device_state_format).
#pragma once

#include <cstddef>
#include <functional>

#include "absl/strings/string_view.h"
#include "base/status.h"
#include "session/hypervisor/memory_stream_receiver.h"

namespace still::session {

// Fills up to `size` bytes and says how many; 0 at the end. Blocks.
using ByteSource = std::function<absl::StatusOr<size_t>(char* out, size_t size)>;

// Reads `source` to its end. INVALID_ARGUMENT: a format nobody here knows. DATA_LOSS: the stream is cut off or not of
// its format: what was delivered before must not be used.
absl::Status SplitMemoryStream(absl::string_view format, const ByteSource& source, MemoryStreamReceiver& receiver);

}  // namespace still::session
