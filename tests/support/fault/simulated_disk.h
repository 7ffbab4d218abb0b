// SimulatedDisk: a file system in memory that loses what was not synced. The tests' instrument for "a crash after write
// k leaves the earlier state or the new one".
//
//   SimulatedDisk disk(seed);
//   disk.CutPowerAt(k);           // the k-th change from now on is the last thing that may reach the disk
//   ... run the code under test until it fails ...
//   disk.Reboot();                // what was synced is there; what was not may be there, in part, or not at all
//
// The model is harsher than any real file system: of a file's unsynced bytes every 512-byte sector is there, zero or
// garbage, by chance, up to a length by chance; of the directory entries that were made, renamed or removed since the
// last sync of their directory each one has reached the disk or not, independently (only a rename onto an existing name
// is one entry, so atomic). A file is durable only when both its bytes and its name are.
//
// Everything follows from the seed and the order of the calls. Thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/file_system.h"

namespace still {

class SimulatedDisk final : public FileSystem {
 public:
  // With the one directory `root`, durable.
  explicit SimulatedDisk(uint64_t seed, std::string root = "/disk");
  ~SimulatedDisk() override;

  const std::string& root() const { return root_; }

  // Faults. Calls that change something are counted: CreateFile, Append, Sync, MakeDirectory, Rename, Remove,
  // RemoveUnattended, SyncDirectory.
  int64_t changes() const;
  // At the k-th change from now on (1: the next) the power goes: it may have happened or not, it and all later calls
  // give UNAVAILABLE. 0: never.
  void CutPowerAt(int64_t k);
  bool power_is_off() const;
  // The k-th change from now on fails with `status` and does nothing (an Append may have written a part).
  void FailAt(int64_t k, absl::Status status);
  // All of the files together may have so many bytes.
  void SetCapacity(uint64_t bytes);
  // Power back on, with what had reached the disk. Files that were being written are nobody's any more.
  void Reboot();
  // The other way on after CutPowerAt(): only the process had died (SIGKILL), and all it did is there, synced or not.
  void RestartProcess();
  // Silent damage, durable: flips bit `bit` of the file, or cuts it to `size`.
  void FlipBit(const std::string& path, uint64_t bit);
  void Truncate(const std::string& path, uint64_t size);

  absl::StatusOr<std::unique_ptr<WritableFile>> CreateFile(const std::string& path) override;
  absl::Status ReadRange(const std::string& path, uint64_t offset, absl::Span<char> out) override;
  absl::StatusOr<FileInfo> Stat(const std::string& path) override;
  absl::StatusOr<std::vector<std::string>> List(const std::string& directory) override;
  absl::Status MakeDirectory(const std::string& path) override;
  absl::Status Rename(const std::string& from, const std::string& to, RenameMode mode) override;
  absl::Status Remove(const std::string& path) override;
  absl::StatusOr<bool> RemoveUnattended(const std::string& path) override;
  absl::Status SyncDirectory(const std::string& path) override;
  absl::StatusOr<uint64_t> AvailableBytes(const std::string& path) override;

 private:
  class File;
  // What a name leads to.
  struct Node {
    bool is_directory = false;
    std::string content;
    std::string synced;
    absl::Time modified;
    int64_t attended_by = 0;  // The generation of its writer; 0: nobody.
  };
  using Names = std::map<std::string, std::shared_ptr<Node>>;  // Shared by the two maps and the writer.

  // Counts a change. OK: do it. Otherwise return this; *happens tells whether to do it all the same.
  absl::Status BeginChange(const std::string& what, bool* happens) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status CheckPower() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<std::shared_ptr<Node>> FindLocked(const std::string& path, absl::string_view operation) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status CheckParent(const std::string& path, absl::string_view operation) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  uint64_t UsedLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status AppendTo(Node& node, int64_t generation, const std::string& path, absl::string_view data);
  absl::Status SyncFile(Node& node, int64_t generation, const std::string& path);
  std::string AfterPowerCut(const Node& node) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::string root_;
  mutable absl::Mutex mutex_;
  std::mt19937_64 random_ ABSL_GUARDED_BY(mutex_);
  Names names_ ABSL_GUARDED_BY(mutex_);
  Names synced_names_ ABSL_GUARDED_BY(mutex_);
  uint64_t capacity_ ABSL_GUARDED_BY(mutex_) = ~uint64_t{0};
  int64_t changes_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t cut_at_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t fail_at_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  bool off_ ABSL_GUARDED_BY(mutex_) = false;
  int64_t generation_ ABSL_GUARDED_BY(mutex_) = 1;
};

}  // namespace still
