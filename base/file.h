// Small whole-file operations with errors that name the path. Blocking; thread-safe (no state of their own).
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "base/fd.h"
#include "base/status.h"

namespace still {

// open(2) with O_CLOEXEC added; retried on EINTR.
absl::StatusOr<OwnedFd> OpenFile(const std::string& path, int flags, mode_t mode = 0600);

// The whole file; RESOURCE_EXHAUSTED when it is longer than `limit` (a file from outside must not fill the memory).
absl::StatusOr<std::string> ReadFile(const std::string& path, size_t limit);

// All bytes or an error, over short transfers and EINTR. `what` names the object in the error.
absl::Status ReadExactly(int fd, void* out, size_t size, absl::string_view what);
absl::Status WriteAll(int fd, const void* data, size_t size, absl::string_view what);
absl::Status PReadExactly(int fd, void* out, size_t size, uint64_t offset, absl::string_view what);
absl::Status PWriteAll(int fd, const void* data, size_t size, uint64_t offset, absl::string_view what);

// The file appears under `path` with all of `content`, or not at all, also across a power cut: temporary file beside
// it, fsync, rename, fsync of the directory. Replaces what was there.
absl::Status WriteFileAtomically(const std::string& path, absl::string_view content, mode_t mode = 0600);
absl::Status SyncDirectory(const std::string& path);

// mkdir -p; directories that are made get `mode`.
absl::Status MakeDirectories(const std::string& path, mode_t mode = 0700);
// rm -rf, without following symbolic links. OK when there is nothing.
absl::Status RemoveTree(const std::string& path);
// unlink; OK when there is nothing.
absl::Status RemoveFile(const std::string& path);
bool PathExists(const std::string& path);
absl::StatusOr<uint64_t> FileSize(const std::string& path);
// Names (without "." and ".."), sorted.
absl::StatusOr<std::vector<std::string>> ListDirectory(const std::string& path);
std::string JoinPath(absl::string_view left, absl::string_view right);

}  // namespace still
