#include "session/memory/page_stream.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "session/memory/write_protection.h"

namespace still::session {
namespace {

// All that is not main memory: as for the hypervisor's own stream (migration_stream.h).
constexpr uint64_t kMaxDeviceStateBytes = 256 << 20;

absl::Status Broken(absl::string_view what) {
  return absl::DataLossError(absl::StrCat("the memory engine's stream is broken: ", what));
}

absl::Status Take(const PageStreamSource& source, char* out, size_t size) {
  for (size_t filled = 0; filled < size;) {
    STILL_ASSIGN_OR_RETURN(size_t got, source(out + filled, size - filled));
    if (got == 0) return absl::DataLossError("the memory engine's stream was cut short");
    filled += got;
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ReadPageStream(const PageStreamSource& source, uint64_t max_memory_bytes, const PageStreamReader& reader) {
  uint64_t sizes[2];  // PageStreamHeader behind its magic.
  STILL_RETURN_IF_ERROR(Take(source, reinterpret_cast<char*>(sizes), sizeof sizes));
  const uint64_t memory_bytes = sizes[0];
  if (memory_bytes == 0 || memory_bytes % kPageBytes != 0 || memory_bytes > max_memory_bytes) {
    return Broken(absl::StrCat("memory of ", memory_bytes, " bytes"));
  }
  if ((sizes[1] & ~uint64_t{kIncrement}) != 0) return Broken("unknown flags");
  STILL_RETURN_IF_ERROR(reader.on_memory(memory_bytes, (sizes[1] & kIncrement) != 0));
  std::vector<bool> seen(memory_bytes / kPageBytes);
  std::vector<char> content(kMaxRecordBytes);
  uint64_t device_state_bytes = 0;
  for (;;) {
    PageRecordHeader record;
    STILL_RETURN_IF_ERROR(Take(source, reinterpret_cast<char*>(&record), sizeof record));
    if (record.bytes > kMaxRecordBytes) return Broken(absl::StrCat("a record of ", record.bytes, " bytes"));
    STILL_RETURN_IF_ERROR(Take(source, content.data(), record.bytes));
    const absl::string_view bytes(content.data(), record.bytes);
    switch (static_cast<PageRecord>(record.kind)) {
      case PageRecord::kPages:
        if (record.bytes == 0 || record.bytes % kPageBytes != 0 || record.offset % kPageBytes != 0 ||
            record.offset > memory_bytes || record.bytes > memory_bytes - record.offset) {
          return Broken("pages that are not of the memory");
        }
        for (uint64_t page = record.offset / kPageBytes; page < (record.offset + record.bytes) / kPageBytes; ++page) {
          if (seen[page]) return Broken("a page twice");
          seen[page] = true;
        }
        STILL_RETURN_IF_ERROR(reader.on_pages(record.offset, bytes));
        break;
      case PageRecord::kDeviceState:
        device_state_bytes += record.bytes;
        if (record.offset != 0 || record.bytes == 0 || device_state_bytes > kMaxDeviceStateBytes) {
          return Broken("an impossible device state");
        }
        STILL_RETURN_IF_ERROR(reader.on_device_state(bytes));
        break;
      case PageRecord::kEnd:
        if (record.offset != 0 || record.bytes != 0) return Broken("an end that does not end");
        return absl::OkStatus();
      default:
        return Broken(absl::StrCat("a record of kind ", record.kind));
    }
  }
}

}  // namespace still::session
