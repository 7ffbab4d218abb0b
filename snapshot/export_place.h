// ExportPlace: where an export is made before it gets its name, so that what has the right name is whole.
//
// Beside it, under a name that is nobody else's (PATH.still-partial), and locked: what an export left that was killed is
// recognised by that, and removed by the next one to the same place. One at a time goes to one place.
#pragma once

#include <memory>
#include <string>

#include "base/fd.h"
#include "base/status.h"

namespace still::snapshot {

class ExportPlace {
 public:
  enum class Kind { kFile, kDirectory };
  // ALREADY_EXISTS when `path` is taken, UNAVAILABLE when another export is writing it.
  static absl::StatusOr<std::unique_ptr<ExportPlace>> Make(const std::string& path, Kind kind);
  // Removes what did not get its name.
  ~ExportPlace();
  ExportPlace(const ExportPlace&) = delete;
  ExportPlace& operator=(const ExportPlace&) = delete;

  const std::string& partial() const { return partial_; }  // Absolute.
  int fd() const { return fd_.get(); }                     // Of the file, for reading and writing, or of the directory.
  // Everything in it must be synced. ALREADY_EXISTS when somebody else has made something there meanwhile.
  absl::Status Finish();

 private:
  ExportPlace(std::string path, std::string partial, Kind kind, OwnedFd fd);

  const std::string path_;
  const std::string partial_;
  const Kind kind_;
  OwnedFd fd_;  // With the lock.
  bool finished_ = false;
};

// Makes a file as long as the image that comes into it. False: the file system has no file that long (ext4 ends at 16 TiB less
// 4 KiB), though it may have room for what the image holds.
absl::StatusOr<bool> ExtendFile(int fd, const std::string& path, uint64_t size);
// RESOURCE_EXHAUSTED, with what to do, where ExtendFile() would give false.
absl::Status ExtendFileOrExplain(int fd, const std::string& path, uint64_t size);

}  // namespace still::snapshot
