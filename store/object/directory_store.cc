#include "store/object/directory_store.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/log.h"
#include "base/random.h"

namespace still {
namespace {

constexpr absl::string_view kWriting = ".writing";
constexpr size_t kFannedOutLeaf = 16;
constexpr size_t kFanOutLength = 2;
// Two changes within one step of the file system's clock leave one stamp. The coarsest steps there are take two seconds
// (FAT); a directory that was changed before that long shows every later change.
constexpr absl::Duration kSettled = absl::Seconds(3);

std::string FolderOf(absl::string_view name) {
  size_t slash = name.find('/');
  return slash == absl::string_view::npos ? std::string() : std::string(name.substr(0, slash));
}

// The directory, relative to the root, that holds the object's file.
std::string DirectoryOf(absl::string_view name) {
  std::string folder = FolderOf(name);
  if (folder.empty()) return folder;
  absl::string_view leaf = name.substr(folder.size() + 1);
  if (leaf.size() < kFannedOutLeaf) return folder;
  return JoinPath(folder, leaf.substr(0, kFanOutLength));
}

std::string FileOf(absl::string_view name) {
  size_t slash = name.find('/');
  absl::string_view leaf = slash == absl::string_view::npos ? name : name.substr(slash + 1);
  return JoinPath(DirectoryOf(name), leaf);
}

absl::Status AboutObject(const absl::Status& status, absl::string_view name) {
  return status.ok() ? status : Annotate(status, absl::StrCat("object ", name));
}

}  // namespace

class DirectoryObjectStore::Writer final : public ObjectWriter {
 public:
  Writer(DirectoryObjectStore& store, std::string name, PutOptions options, std::string temporary,
         std::unique_ptr<WritableFile> file)
      : store_(store),
        name_(std::move(name)),
        options_(options),
        temporary_(std::move(temporary)),
        file_(std::move(file)) {}

  ~Writer() override {
    if (temporary_.empty()) return;
    absl::Status removed = store_.file_system_.Remove(temporary_);
    // Nobody sees the leftover, and the next sweep removes it.
    if (!removed.ok()) LogWarning("temporary object not removed", {{"object", name_}, {"error", removed.ToString()}});
  }

  absl::Status Append(absl::string_view data) override {
    if (!failed_.ok()) return failed_;
    absl::Status status = AboutObject(file_->Append(data), name_);
    // What follows a hole must never be published: the first failure is for good.
    if (!status.ok()) return failed_ = status;
    size_ += data.size();
    return status;
  }

  void Finish() override {
    if (options_.durability == PutDurability::kDurable) file_->StartSync();
  }
  uint64_t size() const override { return size_; }
  const std::string& name() const override { return name_; }
  bool durable() const { return options_.durability == PutDurability::kDurable; }

  absl::Status MoveIntoPlace() {
    STILL_RETURN_IF_ERROR(failed_);
    // The bytes before the name: a name in front of missing bytes would be a torn object after a power cut.
    if (durable()) STILL_RETURN_IF_ERROR(AboutObject(file_->Sync(), name_));
    RenameMode mode = options_.mode == PutMode::kReplace ? RenameMode::kReplace : RenameMode::kNoReplace;
    std::string path = store_.Absolute(FileOf(name_));
    STILL_RETURN_IF_ERROR(AboutObject(store_.file_system_.Rename(temporary_, path, mode), name_));
    temporary_.clear();
    return absl::OkStatus();
  }

 private:
  DirectoryObjectStore& store_;
  const std::string name_;
  const PutOptions options_;
  std::string temporary_;  // Empty once it is in place.
  std::unique_ptr<WritableFile> file_;
  uint64_t size_ = 0;
  absl::Status failed_;
};

DirectoryObjectStore::DirectoryObjectStore(std::string root, FileSystem& file_system)
    : root_(std::move(root)),
      file_system_(file_system),
      capabilities_{.atomic_create = true,
                    .cheap_small_reads = true,
                    .reports_space = true,
                    .parallel_requests = 4,
                    .max_object_bytes = static_cast<uint64_t>(std::numeric_limits<int64_t>::max())} {}

absl::StatusOr<std::unique_ptr<DirectoryObjectStore>> DirectoryObjectStore::Open(const std::string& root,
                                                                                 FileSystem& file_system) {
  STILL_ASSIGN_OR_RETURN(FileInfo info, file_system.Stat(JoinPath(root, ".")));
  if (!info.is_directory) return absl::FailedPreconditionError(absl::StrCat("open ", root, ": not a directory"));
  return std::unique_ptr<DirectoryObjectStore>(new DirectoryObjectStore(root, file_system));
}

std::string DirectoryObjectStore::Absolute(absl::string_view relative) const { return JoinPath(root_, relative); }

absl::Status DirectoryObjectStore::EnsureDirectory(const std::string& relative) {
  if (relative.empty()) return absl::OkStatus();
  {
    absl::MutexLock lock(&mutex_);
    if (durable_directories_.contains(relative)) return absl::OkStatus();
  }
  size_t slash = relative.rfind('/');
  std::string parent = slash == std::string::npos ? std::string() : relative.substr(0, slash);
  STILL_RETURN_IF_ERROR(EnsureDirectory(parent));
  STILL_RETURN_IF_ERROR(file_system_.MakeDirectory(Absolute(relative)));
  // Also when it was there already: another process may have made it and not come to this line.
  STILL_RETURN_IF_ERROR(file_system_.SyncDirectory(parent.empty() ? root_ : Absolute(parent)));
  absl::MutexLock lock(&mutex_);
  durable_directories_.insert(relative);
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<ObjectWriter>> DirectoryObjectStore::NewWriter(absl::string_view name,
                                                                              PutOptions options) {
  STILL_RETURN_IF_ERROR(CheckObjectName(name));
  STILL_RETURN_IF_ERROR(AboutObject(EnsureDirectory(std::string(kWriting)), name));
  STILL_RETURN_IF_ERROR(AboutObject(EnsureDirectory(DirectoryOf(name)), name));
  std::string temporary = Absolute(JoinPath(kWriting, absl::StrCat(absl::Hex(RandomU64(), absl::kZeroPad16))));
  absl::StatusOr<std::unique_ptr<WritableFile>> file = file_system_.CreateFile(temporary);
  if (!file.ok()) return AboutObject(file.status(), name);
  return std::make_unique<Writer>(*this, std::string(name), options, std::move(temporary), *std::move(file));
}

absl::Status DirectoryObjectStore::Publish(std::vector<std::unique_ptr<ObjectWriter>> writers) {
  // All write-backs are under way before the first is waited for.
  if (writers.size() > 1) {
    for (auto& writer : writers) writer->Finish();
  }
  absl::Status status;
  std::vector<std::string> changed;
  for (auto& base_writer : writers) {
    auto* writer = static_cast<Writer*>(base_writer.get());
    status = writer->MoveIntoPlace();
    if (!status.ok()) break;
    if (writer->durable()) changed.push_back(DirectoryOf(writer->name()));
  }
  // Also after a failure: what came before it is visible, so it should be durable.
  return FirstError(std::move(status), SyncDirectories(changed));
}

absl::Status DirectoryObjectStore::SyncDirectories(absl::Span<const std::string> relatives) {
  std::vector<std::string> distinct(relatives.begin(), relatives.end());
  std::sort(distinct.begin(), distinct.end());
  distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
  absl::Status status;
  for (const std::string& relative : distinct) {
    status = FirstError(std::move(status), file_system_.SyncDirectory(relative.empty() ? root_ : Absolute(relative)));
  }
  return status;
}

absl::Status DirectoryObjectStore::Settle(absl::Span<const std::string> names) {
  std::vector<std::string> directories;
  for (const std::string& name : names) {
    STILL_RETURN_IF_ERROR(CheckObjectName(name));
    // The bytes were synced before the name could be seen; only the name, and the way to it, may still be volatile.
    if (!file_system_.Stat(Absolute(FileOf(name))).ok()) continue;
    STILL_RETURN_IF_ERROR(AboutObject(EnsureDirectory(DirectoryOf(name)), name));
    directories.push_back(DirectoryOf(name));
  }
  return SyncDirectories(directories);
}

absl::Status DirectoryObjectStore::GetRange(absl::string_view name, uint64_t offset, absl::Span<char> out) {
  STILL_RETURN_IF_ERROR(CheckObjectName(name));
  return AboutObject(file_system_.ReadRange(Absolute(FileOf(name)), offset, out), name);
}

absl::StatusOr<uint64_t> DirectoryObjectStore::Size(absl::string_view name) {
  STILL_RETURN_IF_ERROR(CheckObjectName(name));
  absl::StatusOr<FileInfo> info = file_system_.Stat(Absolute(FileOf(name)));
  if (!info.ok()) return AboutObject(info.status(), name);
  return info->size;
}

absl::StatusOr<std::vector<ObjectInfo>> DirectoryObjectStore::List(absl::string_view prefix) {
  std::vector<ObjectInfo> found;
  std::string folder = FolderOf(prefix);
  if (!folder.empty()) {
    STILL_RETURN_IF_ERROR(ListFolder(folder, prefix, found));
  } else {
    STILL_ASSIGN_OR_RETURN(std::vector<std::string> entries, file_system_.List(root_));
    for (const std::string& entry : entries) {
      if (!absl::StartsWith(entry, prefix) || absl::StartsWith(entry, ".")) continue;
      absl::StatusOr<FileInfo> info = file_system_.Stat(Absolute(entry));
      if (absl::IsNotFound(info.status())) continue;  // Deleted since the directory was read.
      if (!info.ok()) return info.status();
      if (info->is_directory) {
        STILL_RETURN_IF_ERROR(ListFolder(entry, prefix, found));
      } else if (ValidObjectName(entry)) {
        found.push_back({.name = entry, .size = info->size, .modified = info->modified});
      }
    }
  }
  std::sort(found.begin(), found.end(), [](const ObjectInfo& a, const ObjectInfo& b) { return a.name < b.name; });
  return found;
}

absl::Status DirectoryObjectStore::ListFolder(const std::string& folder, absl::string_view prefix,
                                              std::vector<ObjectInfo>& found) {
  std::vector<std::string> directories = {folder};
  for (size_t i = 0; i < directories.size(); ++i) {
    absl::StatusOr<std::vector<std::string>> entries = file_system_.List(Absolute(directories[i]));
    if (absl::IsNotFound(entries.status())) continue;  // Nothing was ever put there.
    if (!entries.ok()) return entries.status();
    for (const std::string& entry : *entries) {
      if (i == 0 && entry.size() == kFanOutLength) {
        // The two characters are the first of every leaf in it: skip those that cannot match.
        std::string fanned_out = absl::StrCat(folder, "/", entry);
        if (absl::StartsWith(fanned_out, prefix) || absl::StartsWith(prefix, fanned_out)) {
          directories.push_back(std::move(fanned_out));
        }
        continue;
      }
      // Only what lies where its name says: a file that somebody moved or made by hand is not an object.
      std::string name = absl::StrCat(folder, "/", entry);
      if (!absl::StartsWith(name, prefix) || !ValidObjectName(name) || DirectoryOf(name) != directories[i]) continue;
      absl::StatusOr<FileInfo> info = file_system_.Stat(Absolute(FileOf(name)));
      if (absl::IsNotFound(info.status())) continue;  // Deleted since the directory was read.
      if (!info.ok()) return info.status();
      if (!info->is_directory) found.push_back({.name = name, .size = info->size, .modified = info->modified});
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> DirectoryObjectStore::Stamp(absl::string_view folder) {
  const std::string top = FolderOf(folder);
  std::vector<std::string> directories = {top};
  std::string text;
  for (size_t i = 0; i < directories.size(); ++i) {
    const std::string& directory = directories[i];
    absl::StatusOr<std::optional<DirectoryStamp>> stamp = file_system_.StampDirectory(Absolute(directory));
    if (absl::IsNotFound(stamp.status())) return std::string();  // Nothing was ever put there.
    if (!stamp.ok()) return stamp.status();
    if (!stamp->has_value()) return std::string();
    const DirectoryStamp& is = **stamp;
    if (is.asked - std::max(is.modified, is.changed) < kSettled) return std::string();
    absl::StrAppend(&text, directory, " ", is.device, " ", is.inode, " ", absl::ToUnixNanos(is.modified), " ",
                    absl::ToUnixNanos(is.changed), "\n");
    if (i > 0) continue;
    STILL_ASSIGN_OR_RETURN(std::vector<std::string> entries, file_system_.List(Absolute(top)));
    for (const std::string& entry : entries) {
      if (entry.size() == kFanOutLength) directories.push_back(absl::StrCat(top, "/", entry));
    }
  }
  return text;
}

absl::Status DirectoryObjectStore::Delete(absl::Span<const std::string> names) {
  absl::Status status;
  std::vector<std::string> changed;
  for (const std::string& name : names) {
    status = CheckObjectName(name);
    if (status.ok()) status = AboutObject(file_system_.Remove(Absolute(FileOf(name))), name);
    if (!status.ok()) break;
    changed.push_back(DirectoryOf(name));
  }
  // A directory that never was (NOT_FOUND) has nothing in it to delete.
  for (std::string& directory : changed) {
    if (!directory.empty() && !file_system_.Stat(Absolute(directory)).ok()) directory.clear();
  }
  return FirstError(std::move(status), SyncDirectories(changed));
}

absl::StatusOr<SweptLeftovers> DirectoryObjectStore::SweepLeftovers() {
  SweptLeftovers swept;
  const std::string writing = Absolute(kWriting);
  absl::StatusOr<std::vector<std::string>> entries = file_system_.List(writing);
  if (absl::IsNotFound(entries.status())) return swept;
  if (!entries.ok()) return entries.status();
  for (const std::string& entry : *entries) {
    const std::string path = JoinPath(writing, entry);
    absl::StatusOr<FileInfo> info = file_system_.Stat(path);
    if (absl::IsNotFound(info.status())) continue;  // Its writer has just finished.
    if (!info.ok()) return info.status();
    STILL_ASSIGN_OR_RETURN(bool removed, file_system_.RemoveUnattended(path));
    if (removed) {
      ++swept.removed;
      swept.removed_bytes += info->size;
    } else {
      ++swept.still_written;
    }
  }
  return swept;
}

absl::StatusOr<uint64_t> DirectoryObjectStore::AvailableBytes() { return file_system_.AvailableBytes(root_); }

}  // namespace still
