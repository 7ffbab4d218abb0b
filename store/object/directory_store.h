// DirectoryObjectStore: objects as files of a directory on a local or network file system.
//
//   root/folder/ab/abcdef...   an object "folder/abcdef..." (leaf of 16 characters or more: fanned out by its first
//   two) root/folder/leaf           an object with a shorter leaf root/.writing/<random>     an object on its way; what
//   is left there by a crash nobody attends, and it is swept
//
// Files have mode 0600, directories 0700. An object is written under .writing, synced, renamed into place, and the
// directory is synced; Publish() of several begins the write-back of all before it waits for the first, and syncs every
// directory once. Directories are never removed, so that a writer in another process cannot lose the one it renames
// into.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/synchronization/mutex.h"
#include "base/file_system.h"
#include "store/object/object_store.h"

namespace still {

class DirectoryObjectStore final : public ObjectStore {
 public:
  // `root` must exist (NOT_FOUND, FAILED_PRECONDITION when it is no directory). `file_system` must outlive the store.
  static absl::StatusOr<std::unique_ptr<DirectoryObjectStore>> Open(const std::string& root,
                                                                    FileSystem& file_system = FileSystem::Real());

  const ObjectStoreCapabilities& capabilities() const override { return capabilities_; }
  absl::StatusOr<std::unique_ptr<ObjectWriter>> NewWriter(absl::string_view name, PutOptions options) override;
  using ObjectStore::Publish;
  absl::Status Publish(std::vector<std::unique_ptr<ObjectWriter>> writers) override;
  absl::Status Settle(absl::Span<const std::string> names) override;
  absl::Status GetRange(absl::string_view name, uint64_t offset, absl::Span<char> out) override;
  absl::StatusOr<uint64_t> Size(absl::string_view name) override;
  absl::StatusOr<std::vector<ObjectInfo>> List(absl::string_view prefix) override;
  // When the folder and all directories in it were changed. Only where the file system stamps them reliably, which no network
  // file system does: others change its directories, and this host's cache of their attributes does not show it at once.
  absl::StatusOr<std::string> Stamp(absl::string_view folder) override;
  using ObjectStore::Delete;
  absl::Status Delete(absl::Span<const std::string> names) override;
  absl::StatusOr<SweptLeftovers> SweepLeftovers() override;
  absl::StatusOr<uint64_t> AvailableBytes() override;

 private:
  class Writer;

  DirectoryObjectStore(std::string root, FileSystem& file_system);
  // Makes root/`relative` and what is above it, durably. Remembers what it made: usually does nothing.
  absl::Status EnsureDirectory(const std::string& relative) ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status ListFolder(const std::string& folder, absl::string_view prefix, std::vector<ObjectInfo>& found);
  absl::Status SyncDirectories(absl::Span<const std::string> relatives);
  std::string Absolute(absl::string_view relative) const;

  const std::string root_;
  FileSystem& file_system_;
  const ObjectStoreCapabilities capabilities_;
  absl::Mutex mutex_;
  absl::flat_hash_set<std::string> durable_directories_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace still
