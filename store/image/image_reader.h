// ImageReader: random access to a stored image. Thread-safe; calls block. Nothing damaged is ever returned: DATA_LOSS
// names the image's range instead.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/types/span.h"
#include "base/status.h"

namespace still::store {

struct ImageRange {
  uint64_t offset = 0;
  uint64_t length = 0;
  bool operator==(const ImageRange&) const = default;
};

struct ImageExtent {
  uint64_t offset = 0;
  uint64_t length = 0;
  bool zero = false;
};

struct RestoreOptions {
  // The file is new or known to be zero: zero ranges are not written, and stay holes. Else they are punched or written.
  bool target_is_zero = true;
  // Called from time to time with the bytes of the image that are done, from any worker, one at a time. Returning false
  // stops with CANCELLED.
  std::function<bool(uint64_t done_bytes)> progress;
};

class ImageReader {
 public:
  virtual ~ImageReader() = default;

  virtual uint64_t size() const = 0;  // Bytes.
  // Fills all of `out`; OUT_OF_RANGE beyond the end. A bounded cache (32 MiB) serves what was read lately.
  virtual absl::Status Read(uint64_t offset, absl::Span<char> out) = 0;
  // What of [offset, offset + length) is stored and what is zero, in order, without gaps, in units of blocks. Reads
  // the tree only.
  virtual absl::StatusOr<std::vector<ImageExtent>> Extents(uint64_t offset, uint64_t length) = 0;
  // The whole image into `fd` from its offset 0 on, on all of the repository's workers. The file is made at least
  // size() long, but neither truncated nor synced.
  virtual absl::Status RestoreTo(int fd, const RestoreOptions& options) = 0;
};

}  // namespace still::store
