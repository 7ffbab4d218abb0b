// FileSystem: the seam between the repository and the disk, so that tests can fail any call and cut the power after it.
//
// Only what a store of write-once files needs: a file is written front to back, synced, renamed into place and then
// only read. Nothing is durable before it is synced: a file's bytes by WritableFile::Sync(), its name by
// SyncDirectory() of the directory it lies in (POSIX leaves both orders open; see fsync(2), "NOTES").
//
// All calls block. Thread-safe; a WritableFile is for one thread at a time. Errors name path and errno (base/status.h).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "base/status.h"

namespace still {

struct FileInfo {
  uint64_t size = 0;    // Bytes.
  absl::Time modified;  // Last write, by the file system's clock.
  bool is_directory = false;
};

// How a directory's own names stand: whoever makes, renames or removes one changes it, to the resolution of the file system's
// clock.
struct DirectoryStamp {
  uint64_t device = 0;
  uint64_t inode = 0;
  absl::Time modified;
  absl::Time changed;
  absl::Time asked;  // Before any of it was looked at, by the clock that the others are of.
};

// A new file that is being written. The destructor closes it and leaves it where it is.
class WritableFile {
 public:
  virtual ~WritableFile() = default;
  virtual absl::Status Append(absl::string_view data) = 0;
  // Asks the disk to begin; returns at once. Only a hint: several files that are begun together sync in parallel.
  virtual void StartSync() = 0;
  // The bytes are durable when this is OK. After an error they must be considered lost, also if a later call succeeds
  // (Linux reports a failed write-back once and then drops the pages).
  virtual absl::Status Sync() = 0;
};

enum class RenameMode {
  kReplace,    // What was under the new name is gone, atomically.
  kNoReplace,  // ALREADY_EXISTS when the new name is taken; atomic against others who do the same.
};

class FileSystem {
 public:
  virtual ~FileSystem() = default;

  // A new, empty file with mode 0600; ALREADY_EXISTS when the name is taken. It counts as attended, for every process,
  // until the WritableFile is destroyed or its process dies.
  virtual absl::StatusOr<std::unique_ptr<WritableFile>> CreateFile(const std::string& path) = 0;
  // Fills all of `out`; OUT_OF_RANGE when the file ends before that.
  virtual absl::Status ReadRange(const std::string& path, uint64_t offset, absl::Span<char> out) = 0;
  virtual absl::StatusOr<FileInfo> Stat(const std::string& path) = 0;
  // Names in the directory, sorted, without "." and "..".
  virtual absl::StatusOr<std::vector<std::string>> List(const std::string& directory) = 0;
  // Mode 0700. OK when the directory is there already.
  virtual absl::Status MakeDirectory(const std::string& path) = 0;
  virtual absl::Status Rename(const std::string& from, const std::string& to, RenameMode mode) = 0;
  // Unlinks a file. OK when there is nothing.
  virtual absl::Status Remove(const std::string& path) = 0;
  // Removes a file that nobody attends any more (see CreateFile). False: somebody still writes it, it stays.
  virtual absl::StatusOr<bool> RemoveUnattended(const std::string& path) = 0;
  virtual absl::Status SyncDirectory(const std::string& path) = 0;
  // What an unprivileged writer can still store on the file system that holds `path`, in bytes.
  virtual absl::StatusOr<uint64_t> AvailableBytes(const std::string& path) = 0;
  // nullopt where that cannot be relied on: file systems whose attributes are cached here while others change them (network
  // file systems), and those of which nobody knows. Follows links.
  virtual absl::StatusOr<std::optional<DirectoryStamp>> StampDirectory(const std::string& /*directory*/) {
    return std::nullopt;
  }

  // The machine's own. Thread-safe, never destroyed.
  static FileSystem& Real();
};

}  // namespace still
