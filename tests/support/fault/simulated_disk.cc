#include "tests/support/fault/simulated_disk.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace still {
namespace {

constexpr size_t kSector = 512;

std::string ParentOf(const std::string& path) {
  size_t slash = path.rfind('/');
  return slash == std::string::npos || slash == 0 ? "/" : path.substr(0, slash);
}

// "/disk/." is "/disk".
std::string Plain(const std::string& path) {
  return absl::EndsWith(path, "/.") ? path.substr(0, path.size() - 2) : path;
}

absl::Status PowerOff() { return absl::UnavailableError("simulated disk: the power is off"); }

}  // namespace

class SimulatedDisk::File final : public WritableFile {
 public:
  File(SimulatedDisk& disk, std::shared_ptr<Node> node, int64_t generation, std::string path)
      : disk_(disk), node_(std::move(node)), generation_(generation), path_(std::move(path)) {}
  ~File() override {
    absl::MutexLock lock(&disk_.mutex_);
    if (node_->attended_by == generation_) node_->attended_by = 0;
  }
  absl::Status Append(absl::string_view data) override { return disk_.AppendTo(*node_, generation_, path_, data); }
  void StartSync() override {}
  absl::Status Sync() override { return disk_.SyncFile(*node_, generation_, path_); }

 private:
  SimulatedDisk& disk_;
  const std::shared_ptr<Node> node_;
  const int64_t generation_;
  const std::string path_;
};

SimulatedDisk::SimulatedDisk(uint64_t seed, std::string root) : root_(std::move(root)), random_(seed) {
  auto node = std::make_shared<Node>();
  node->is_directory = true;
  names_[root_] = node;
  synced_names_[root_] = node;
}

SimulatedDisk::~SimulatedDisk() = default;

int64_t SimulatedDisk::changes() const {
  absl::MutexLock lock(&mutex_);
  return changes_;
}

void SimulatedDisk::CutPowerAt(int64_t k) {
  absl::MutexLock lock(&mutex_);
  cut_at_ = k == 0 ? 0 : changes_ + k;
}

bool SimulatedDisk::power_is_off() const {
  absl::MutexLock lock(&mutex_);
  return off_;
}

void SimulatedDisk::FailAt(int64_t k, absl::Status status) {
  absl::MutexLock lock(&mutex_);
  fail_at_ = k == 0 ? 0 : changes_ + k;
  failure_ = std::move(status);
}

void SimulatedDisk::SetCapacity(uint64_t bytes) {
  absl::MutexLock lock(&mutex_);
  capacity_ = bytes;
}

absl::Status SimulatedDisk::CheckPower() const { return off_ ? PowerOff() : absl::OkStatus(); }

absl::Status SimulatedDisk::BeginChange(const std::string& what, bool* happens) {
  *happens = false;
  STILL_RETURN_IF_ERROR(CheckPower());
  ++changes_;
  if (changes_ == cut_at_) {
    off_ = true;
    *happens = random_() % 2 == 0;
    return PowerOff();
  }
  if (changes_ == fail_at_) return Annotate(failure_, what);
  *happens = true;
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<SimulatedDisk::Node>> SimulatedDisk::FindLocked(const std::string& path,
                                                                               absl::string_view operation) const {
  auto found = names_.find(Plain(path));
  if (found == names_.end()) return ErrnoStatus(ENOENT, absl::StrCat(operation, " ", path));
  return found->second;
}

absl::Status SimulatedDisk::CheckParent(const std::string& path, absl::string_view operation) const {
  absl::StatusOr<std::shared_ptr<Node>> parent = FindLocked(ParentOf(path), operation);
  if (!parent.ok()) return parent.status();
  return (*parent)->is_directory ? absl::OkStatus() : ErrnoStatus(ENOTDIR, absl::StrCat(operation, " ", path));
}

uint64_t SimulatedDisk::UsedLocked() const {
  uint64_t used = 0;
  for (const auto& [path, node] : names_) used += node->content.size();
  return used;
}

absl::Status SimulatedDisk::AppendTo(Node& node, int64_t generation, const std::string& path, absl::string_view data) {
  absl::MutexLock lock(&mutex_);
  if (off_ || generation != generation_) return PowerOff();  // Its writer is dead.
  bool happens;
  absl::Status status = BeginChange(absl::StrCat("write ", path), &happens);
  uint64_t used = UsedLocked();
  uint64_t room = capacity_ > used ? capacity_ - used : 0;
  if (status.ok() && data.size() > room) {
    status = ErrnoStatus(ENOSPC, absl::StrCat("write ", path));
    data = data.substr(0, room);
  } else if (!happens) {
    data = data.substr(0, random_() % (data.size() + 1));
  }
  node.content.append(data.data(), data.size());
  node.modified = absl::Now();
  return status;
}

absl::Status SimulatedDisk::SyncFile(Node& node, int64_t generation, const std::string& path) {
  absl::MutexLock lock(&mutex_);
  if (generation != generation_) return PowerOff();
  bool happens;
  absl::Status status = BeginChange(absl::StrCat("fsync ", path), &happens);
  if (happens) node.synced = node.content;
  return status;
}

absl::StatusOr<std::unique_ptr<WritableFile>> SimulatedDisk::CreateFile(const std::string& path) {
  absl::MutexLock lock(&mutex_);
  bool happens;
  absl::Status status = BeginChange(absl::StrCat("open ", path), &happens);
  if (!happens) return status;
  STILL_RETURN_IF_ERROR(CheckParent(path, "open"));
  if (names_.contains(path)) return ErrnoStatus(EEXIST, absl::StrCat("open ", path));
  auto node = std::make_shared<Node>();
  node->attended_by = generation_;
  node->modified = absl::Now();
  names_[path] = node;
  if (!status.ok()) return status;
  return std::make_unique<File>(*this, std::move(node), generation_, path);
}

absl::Status SimulatedDisk::ReadRange(const std::string& path, uint64_t offset, absl::Span<char> out) {
  absl::MutexLock lock(&mutex_);
  STILL_RETURN_IF_ERROR(CheckPower());
  STILL_ASSIGN_OR_RETURN(std::shared_ptr<Node> node, FindLocked(path, "open"));
  if (node->is_directory) return ErrnoStatus(EISDIR, absl::StrCat("read ", path));
  if (offset > node->content.size() || out.size() > node->content.size() - offset) {
    return absl::OutOfRangeError(absl::StrCat("read ", path, " at ", offset, ": ends early"));
  }
  node->content.copy(out.data(), out.size(), offset);
  return absl::OkStatus();
}

absl::StatusOr<FileInfo> SimulatedDisk::Stat(const std::string& path) {
  absl::MutexLock lock(&mutex_);
  STILL_RETURN_IF_ERROR(CheckPower());
  STILL_ASSIGN_OR_RETURN(std::shared_ptr<Node> node, FindLocked(path, "stat"));
  return FileInfo{.size = node->content.size(), .modified = node->modified, .is_directory = node->is_directory};
}

absl::StatusOr<std::vector<std::string>> SimulatedDisk::List(const std::string& directory) {
  absl::MutexLock lock(&mutex_);
  STILL_RETURN_IF_ERROR(CheckPower());
  STILL_ASSIGN_OR_RETURN(std::shared_ptr<Node> node, FindLocked(directory, "open directory"));
  if (!node->is_directory) return ErrnoStatus(ENOTDIR, absl::StrCat("open directory ", directory));
  std::vector<std::string> found;
  const std::string prefix = absl::StrCat(Plain(directory), "/");
  for (auto each = names_.lower_bound(prefix); each != names_.end() && absl::StartsWith(each->first, prefix); ++each) {
    std::string rest = each->first.substr(prefix.size());
    if (!absl::StrContains(rest, '/')) found.push_back(std::move(rest));
  }
  return found;
}

absl::Status SimulatedDisk::MakeDirectory(const std::string& path) {
  absl::MutexLock lock(&mutex_);
  bool happens;
  absl::Status status = BeginChange(absl::StrCat("mkdir ", path), &happens);
  if (!happens) return status;
  STILL_RETURN_IF_ERROR(CheckParent(path, "mkdir"));
  if (!names_.contains(path)) {
    names_[path] = std::make_shared<Node>();
    names_[path]->is_directory = true;
  }
  return status;
}

absl::Status SimulatedDisk::Rename(const std::string& from, const std::string& to, RenameMode mode) {
  absl::MutexLock lock(&mutex_);
  const std::string what = absl::StrCat("rename ", from, " to ", to);
  bool happens;
  absl::Status status = BeginChange(what, &happens);
  if (!happens) return status;
  STILL_ASSIGN_OR_RETURN(std::shared_ptr<Node> node, FindLocked(from, "rename"));
  STILL_RETURN_IF_ERROR(CheckParent(to, "rename"));
  auto existing = names_.find(to);
  if (existing != names_.end()) {
    if (mode == RenameMode::kNoReplace) return ErrnoStatus(EEXIST, what);
    if (existing->second->is_directory) return ErrnoStatus(EISDIR, what);
  }
  names_[to] = std::move(node);
  names_.erase(from);
  return status;
}

absl::Status SimulatedDisk::Remove(const std::string& path) {
  absl::MutexLock lock(&mutex_);
  bool happens;
  absl::Status status = BeginChange(absl::StrCat("unlink ", path), &happens);
  if (!happens) return status;
  auto found = names_.find(path);
  if (found == names_.end()) return status;
  if (found->second->is_directory) return ErrnoStatus(EISDIR, absl::StrCat("unlink ", path));
  names_.erase(found);
  return status;
}

absl::StatusOr<bool> SimulatedDisk::RemoveUnattended(const std::string& path) {
  {
    absl::MutexLock lock(&mutex_);
    STILL_RETURN_IF_ERROR(CheckPower());
    absl::StatusOr<std::shared_ptr<Node>> node = FindLocked(path, "open");
    if (node.ok() && (*node)->attended_by == generation_) return false;
  }
  STILL_RETURN_IF_ERROR(Remove(path));
  return true;
}

absl::Status SimulatedDisk::SyncDirectory(const std::string& path) {
  absl::MutexLock lock(&mutex_);
  bool happens;
  absl::Status status = BeginChange(absl::StrCat("fsync ", path), &happens);
  if (!happens) return status;
  STILL_RETURN_IF_ERROR(FindLocked(path, "open").status());
  const std::string directory = Plain(path);
  for (auto each = synced_names_.begin(); each != synced_names_.end();) {
    bool gone = ParentOf(each->first) == directory && each->first != root_ && !names_.contains(each->first);
    each = gone ? synced_names_.erase(each) : std::next(each);
  }
  for (const auto& [name, node] : names_) {
    if (ParentOf(name) == directory) synced_names_[name] = node;
  }
  return status;
}

absl::StatusOr<uint64_t> SimulatedDisk::AvailableBytes(const std::string&) {
  absl::MutexLock lock(&mutex_);
  STILL_RETURN_IF_ERROR(CheckPower());
  uint64_t used = UsedLocked();
  return capacity_ > used ? capacity_ - used : 0;
}

std::string SimulatedDisk::AfterPowerCut(const Node& node) {
  // Bytes are only ever appended, so what was synced is a prefix.
  STILL_CHECK(absl::StartsWith(node.content, node.synced));
  std::string left = node.synced;
  size_t end = node.synced.size() + random_() % (node.content.size() - node.synced.size() + 1);
  while (left.size() < end) {
    size_t length = std::min(kSector, end - left.size());
    switch (random_() % 3) {
      case 0:
        left.append(node.content, left.size(), length);
        break;
      case 1:
        left.append(length, '\0');
        break;
      default:
        left.append(length, static_cast<char>(random_()));
    }
  }
  return left;
}

void SimulatedDisk::Reboot() {
  absl::MutexLock lock(&mutex_);
  Names survived;
  Names all = names_;
  all.insert(synced_names_.begin(), synced_names_.end());
  for (const auto& [path, unused] : all) {
    // In order of the paths, so parents come before what is in them.
    if (path != root_ && !survived.contains(ParentOf(path))) continue;
    auto now = names_.find(path);
    auto synced = synced_names_.find(path);
    bool same = now != names_.end() && synced != synced_names_.end() && now->second == synced->second;
    bool reached = same || random_() % 2 == 0;
    auto& source = reached ? now : synced;
    if (source == (reached ? names_.end() : synced_names_.end())) continue;
    // A copy: two names may have survived a rename, and they must not share later changes.
    auto node = std::make_shared<Node>(*source->second);
    node->content = AfterPowerCut(*source->second);
    node->synced = node->content;
    node->attended_by = 0;
    survived[path] = std::move(node);
  }
  names_ = survived;
  synced_names_ = std::move(survived);
  off_ = false;
  cut_at_ = 0;
  fail_at_ = 0;
  ++generation_;
}

void SimulatedDisk::RestartProcess() {
  absl::MutexLock lock(&mutex_);
  off_ = false;
  cut_at_ = 0;
  fail_at_ = 0;
  ++generation_;
}

void SimulatedDisk::FlipBit(const std::string& path, uint64_t bit) {
  absl::MutexLock lock(&mutex_);
  Node& node = *names_.at(path);
  STILL_CHECK(bit / 8 < node.content.size());
  node.content[bit / 8] = static_cast<char>(node.content[bit / 8] ^ (1 << (bit % 8)));
  node.synced = node.content;
}

void SimulatedDisk::Truncate(const std::string& path, uint64_t size) {
  absl::MutexLock lock(&mutex_);
  Node& node = *names_.at(path);
  node.content.resize(size);
  node.synced = node.content;
}

}  // namespace still
