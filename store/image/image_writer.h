// ImageWriter: takes the content of one image and stores what is new of it.
//
// Knows nothing of snapshots' names or of where the bytes come from. One thread writes; hashing and compression run on
// the repository's workers, and Write() waits when they fall behind, so memory stays bounded for any image size.
#pragma once

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "base/status.h"
#include "proto/manifest.pb.h"

namespace still::store {

inline constexpr uint64_t kBlockBytes = 4096;

struct ImageOptions {
  std::string name;  // Unique in the snapshot; [a-z0-9._-], 1 to 64 characters.
  ::stillpoint::manifest::v1::Image::Role role = ::stillpoint::manifest::v1::Image::ROLE_DISK;
  uint64_t size = 0;  // Bytes; need not be a multiple of the block size.
  // An image to compare with at the same places, and to take from in KeepParent: its root and size, from its manifest.
  // Empty: none. Its size may differ.
  std::string parent_root;
  uint64_t parent_size = 0;
};

struct ImageStats {
  uint64_t bytes_written = 0;  // Given to Write and WriteFromFile.
  uint64_t zero_bytes = 0;
  uint64_t kept_bytes = 0;  // Same as the parent at the same place, or kept.
  uint64_t duplicate_bytes = 0;
  uint64_t new_bytes = 0;
};

class ImageWriter {
 public:
  virtual ~ImageWriter() = default;

  // `offset` and the length are multiples of 4096, but the last bytes of the image may be a shorter block. Any order; a
  // later write replaces an earlier one of the same place. What is never written or kept is zero. `data` is copied.
  // After an error every later call fails with it.
  virtual absl::Status Write(uint64_t offset, absl::string_view data) = 0;
  // The same, read from `fd` (pread) at `file_offset` by the workers themselves: the quickest way from a file. Holes of
  // a sparse file are not read. `fd` must stay open until Finish; a file that ends early is OUT_OF_RANGE.
  virtual absl::Status WriteFromFile(int fd, uint64_t file_offset, uint64_t offset, uint64_t length) = 0;
  // This range is zero, also if something else was written before.
  virtual absl::Status WriteZeros(uint64_t offset, uint64_t length) = 0;
  // This range is as in the parent (zero beyond its end), for example because a dirty bitmap says so. Nothing is read.
  virtual absl::Status KeepParent(uint64_t offset, uint64_t length) = 0;
  // Waits until everything is hashed and placed. The image then belongs to the snapshot; it is durable with Commit.
  virtual absl::Status Finish() = 0;

  // Thread-safe.
  virtual ImageStats stats() const = 0;
};

}  // namespace still::store
