// The memory engine's stream, whose pages come out of a process that a hostile guest may have taken over. What is fed is what
// stands behind the stream's first eight bytes.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "session/memory/page_stream.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr uint64_t kMaxMemory = 1 << 20;
  size_t taken = 0;
  auto source = [&](char* out, size_t wanted) -> absl::StatusOr<size_t> {
    const size_t part = std::min(wanted, size - taken);
    if (part > 0) std::memcpy(out, data + taken, part);
    taken += part;
    return part;
  };
  uint64_t memory = 0;
  (void)still::session::ReadPageStream(source, kMaxMemory,
                                       {.on_memory =
                                            [&](uint64_t bytes, bool) {
                                              memory = bytes;
                                              if (memory > kMaxMemory) __builtin_trap();
                                              return absl::OkStatus();
                                            },
                                        .on_pages =
                                            [&](uint64_t offset, absl::string_view pages) {
                                              if (offset > memory || pages.size() > memory - offset) __builtin_trap();
                                              if (pages.empty() || pages.size() % 4096 != 0) __builtin_trap();
                                              return absl::OkStatus();
                                            },
                                        .on_device_state = [](absl::string_view) { return absl::OkStatus(); }});
  return 0;
}
