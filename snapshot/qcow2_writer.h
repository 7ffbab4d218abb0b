// qcow2 files, made from what a repository holds: by QEMU's own tools, because their format is not ours to make.
//
// A file holds what its image holds, whatever size the disk has: where a sparse raw file would be longer than the file system
// allows, this is the way.
#pragma once

#include <libnbd.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "base/process.h"
#include "base/status.h"
#include "snapshot/scratch_directory.h"
#include "store/repository.h"

namespace still::snapshot {

// A new file, or an empty one, of a disk of at least `size` bytes (whole sectors). `backing`: the name of the qcow2 file in the
// same directory that it lies over; empty: none.
absl::Status CreateQcow2(const std::string& path, uint64_t size, const std::string& backing = "");

// Such a file while it is written. For one thread.
class Qcow2Writer {
 public:
  // `path`: absolute. Its backing file is beside it.
  static absl::StatusOr<std::unique_ptr<Qcow2Writer>> Open(const std::string& path);
  ~Qcow2Writer();
  Qcow2Writer(const Qcow2Writer&) = delete;
  Qcow2Writer& operator=(const Qcow2Writer&) = delete;

  // A range of the image, to the same place. `over_zero`: the file is zero there, and what is zero need not be written.
  // CANCELLED when `progress` gives false.
  absl::Status Copy(store::ImageReader& reader, const store::ImageRange& range, bool over_zero,
                    const std::function<bool(uint64_t end)>& progress);
  // Everything is durable, and the tool has closed the file.
  absl::Status Finish();

 private:
  Qcow2Writer(std::unique_ptr<ScratchDirectory> scratch, ChildProcess server, nbd_handle* handle)
      : scratch_(std::move(scratch)), server_(std::move(server)), handle_(handle) {}
  absl::Status Write(uint64_t offset, const char* data, size_t size);
  absl::Status Zero(uint64_t offset, uint64_t length);

  std::unique_ptr<ScratchDirectory> scratch_;  // With the socket.
  ChildProcess server_;
  nbd_handle* handle_;
};

// All of an image, into a new file at `path` (or an empty one), synced.
absl::Status WriteQcow2(store::ImageReader& reader, const std::string& path,
                        const std::function<bool(uint64_t end)>& progress);

}  // namespace still::snapshot
