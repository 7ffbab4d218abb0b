// The page stream: a machine's main memory and its device state, from the memory engine to whoever stores them.
//
//   header   "STPAGES1", u64 bytes of memory, u64 flags (PageStreamFlags)
//   record   u32 kind, u32 bytes, u64 offset, then `bytes` bytes of content
//     kPages        whole pages of memory from `offset` on, at most kMaxRecordBytes
//     kDeviceState  the next bytes of the hypervisor's device state; offset 0
//     kEnd          nothing follows; offset and bytes 0
//
// Numbers are little-endian. Each page comes at most once; one that does not come is zero or, in an increment, as it was at the
// point that the increment builds on. A stream without kEnd was cut short. It lives on a socket inside one host, between programs of one version, and is never stored.
//
// The reader takes it for hostile: the engine reads the memory of a process that its guest may have taken over.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "absl/strings/string_view.h"
#include "base/status.h"

namespace still::session {

inline constexpr char kPageStreamMagic[] = "STPAGES1";
inline constexpr size_t kPageStreamMagicBytes = 8;
inline constexpr uint32_t kMaxRecordBytes = 1 << 20;

enum class PageRecord : uint32_t { kPages = 1, kDeviceState = 2, kEnd = 3 };

enum PageStreamFlags : uint64_t { kIncrement = 1 };

struct PageStreamHeader {
  char magic[kPageStreamMagicBytes];
  uint64_t memory_bytes;
  uint64_t flags;
};
static_assert(sizeof(PageStreamHeader) == 24);

struct PageRecordHeader {
  uint32_t kind;
  uint32_t bytes;
  uint64_t offset;
};
static_assert(sizeof(PageRecordHeader) == 16);

// What a page stream is made of, as it comes. A function's error ends the reading and is returned as it is.
struct PageStreamReader {
  std::function<absl::Status(uint64_t memory_bytes, bool increment)> on_memory;  // Once, first.
  std::function<absl::Status(uint64_t offset, absl::string_view pages)> on_pages;
  std::function<absl::Status(absl::string_view bytes)> on_device_state;
};

// Fills up to `size` bytes and says how many; 0 at the end. Blocks.
using PageStreamSource = std::function<absl::StatusOr<size_t>(char* out, size_t size)>;

// Reads `source`, which stands behind the magic, to its end. DATA_LOSS: broken or cut short; what was delivered must not
// be used.
absl::Status ReadPageStream(const PageStreamSource& source, uint64_t max_memory_bytes, const PageStreamReader& reader);

}  // namespace still::session
