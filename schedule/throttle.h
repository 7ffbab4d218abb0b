// ThrottledFileSystem: reads and writes no faster than asked for; everything else as the file system behind it does.
// Thread-safe.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/clock.h"
#include "base/file_system.h"

namespace still::schedule {

// Gives out time, so that on average no more than `rate` bytes a second go by; after a rest one second's worth may go at
// once. All files of a file system share one.
class Throttle {
 public:
  Throttle(uint64_t rate, Clock& clock) : rate_(rate), clock_(clock) {}
  // Blocks until `bytes` may go.
  void Take(uint64_t bytes) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  const uint64_t rate_;
  Clock& clock_;
  absl::Mutex mutex_;
  absl::Duration paid_until_ ABSL_GUARDED_BY(mutex_) = -absl::InfiniteDuration();
};

class ThrottledFileSystem final : public FileSystem {
 public:
  // Both must outlive it.
  ThrottledFileSystem(FileSystem& real, Throttle& throttle) : real_(real), throttle_(throttle) {}

  absl::StatusOr<std::unique_ptr<WritableFile>> CreateFile(const std::string& path) override;
  absl::Status ReadRange(const std::string& path, uint64_t offset, absl::Span<char> out) override {
    throttle_.Take(out.size());
    return real_.ReadRange(path, offset, out);
  }
  absl::StatusOr<FileInfo> Stat(const std::string& path) override { return real_.Stat(path); }
  absl::StatusOr<std::vector<std::string>> List(const std::string& directory) override { return real_.List(directory); }
  absl::StatusOr<std::optional<DirectoryStamp>> StampDirectory(const std::string& directory) override {
    return real_.StampDirectory(directory);
  }
  absl::Status MakeDirectory(const std::string& path) override { return real_.MakeDirectory(path); }
  absl::Status Rename(const std::string& from, const std::string& to, RenameMode mode) override {
    return real_.Rename(from, to, mode);
  }
  absl::Status Remove(const std::string& path) override { return real_.Remove(path); }
  absl::StatusOr<bool> RemoveUnattended(const std::string& path) override { return real_.RemoveUnattended(path); }
  absl::Status SyncDirectory(const std::string& path) override { return real_.SyncDirectory(path); }
  absl::StatusOr<uint64_t> AvailableBytes(const std::string& path) override { return real_.AvailableBytes(path); }

 private:
  FileSystem& real_;
  Throttle& throttle_;
};

}  // namespace still::schedule
