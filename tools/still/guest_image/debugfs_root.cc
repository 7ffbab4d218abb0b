#include <fcntl.h>
#include <stdlib.h>

#include <cerrno>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "base/file.h"
#include "base/process.h"
#include "tools/still/guest_image/guest_root.h"

namespace still::cli {
namespace {

constexpr char kDebugfs[] = "/usr/sbin/debugfs";
constexpr absl::Duration kTimeout = absl::Minutes(2);

// debugfs has no exit code for what fails: it says so on stderr, below a line with its version.
absl::Status Complaint(const CommandOutput& output) {
  std::string complaint;
  for (absl::string_view line : absl::StrSplit(output.stderr_text, '\n', absl::SkipEmpty())) {
    if (!absl::StartsWith(line, "debugfs ")) absl::StrAppend(&complaint, complaint.empty() ? "" : "; ", line);
  }
  if (complaint.empty() && output.exit.ok()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("debugfs: ", complaint.empty() ? output.exit.ToString() : complaint));
}

// The paths and names given to debugfs are all ours: no blanks, no quotes.
class DebugfsRoot final : public GuestRoot {
 public:
  static absl::StatusOr<std::unique_ptr<DebugfsRoot>> Make(const GuestDisk& disk, const GuestFileSystem& part) {
    auto root = std::make_unique<DebugfsRoot>();
    // e2fsprogs: what stands behind a question mark are options of its I/O.
    if (absl::StrContains(disk.raw_path(), "?")) {
      return absl::InvalidArgumentError(absl::StrCat(disk.raw_path(), ": no question mark may be in the image's path"));
    }
    root->device_ = absl::StrCat(disk.raw_path(), "?offset=", part.offset);
    char pattern[] = "/tmp/still-debugfs-XXXXXX";
    if (::mkdtemp(pattern) == nullptr) return ErrnoStatus(errno, "mkdtemp in /tmp");
    root->staging_ = pattern;
    return root;
  }
  ~DebugfsRoot() override { (void)RemoveTree(staging_); }

  bool Exists(const std::string& path) override {
    absl::StatusOr<CommandOutput> output = Run({"-R", absl::StrCat("stat ", path)});
    return output.ok() && Complaint(*output).ok() && absl::StrContains(output->stdout_text, "Inode: ");
  }

  absl::StatusOr<std::string> Read(const std::string& path) override {
    STILL_ASSIGN_OR_RETURN(CommandOutput output, Run({"-R", absl::StrCat("cat ", path)}));
    STILL_RETURN_IF_ERROR(Complaint(output));
    return std::move(output.stdout_text);
  }

  absl::Status Write(const std::string& path, absl::string_view content, mode_t mode) override {
    const std::string staged = JoinPath(staging_, absl::StrCat("file", ++files_));
    STILL_RETURN_IF_ERROR(WriteFileAtomically(staged, content));
    STILL_RETURN_IF_ERROR(Enter(path));
    const std::string name = NameOf(path);
    absl::StrAppend(&script_, "write ", staged, " ", name, "\n", "set_inode_field ", name, " mode 0100",
                    absl::StrFormat("%03o", mode), "\nset_inode_field ", name, " uid 0\nset_inode_field ", name,
                    " gid 0\n");
    return absl::OkStatus();
  }

  absl::Status Link(const std::string& path, const std::string& target) override {
    STILL_RETURN_IF_ERROR(Enter(path));
    absl::StrAppend(&script_, "symlink ", NameOf(path), " ", target, "\n");
    return absl::OkStatus();
  }

  absl::Status MakeDirectory(const std::string& path) override {
    std::string so_far;
    for (absl::string_view name : absl::StrSplit(path, '/', absl::SkipEmpty())) {
      const std::string parent = so_far.empty() ? "/" : so_far;
      absl::StrAppend(&so_far, "/", name);
      if (made_.count(so_far) > 0 || Exists(so_far)) continue;
      absl::StrAppend(&script_, "cd ", parent, "\nmkdir ", name, "\n");
      made_.insert(so_far);
    }
    return absl::OkStatus();
  }

  absl::Status Commit() override {
    const std::string script = JoinPath(staging_, "script");
    STILL_RETURN_IF_ERROR(WriteFileAtomically(script, script_));
    STILL_ASSIGN_OR_RETURN(CommandOutput output, Run({"-w", "-f", script}));
    return Complaint(output);
  }

 private:
  absl::StatusOr<CommandOutput> Run(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), kDebugfs);
    arguments.push_back(device_);
    return RunCommand({.argv = std::move(arguments)}, kTimeout);
  }
  static std::string NameOf(const std::string& path) { return path.substr(path.rfind('/') + 1); }
  // Goes to the directory of `path` and removes what is there.
  absl::Status Enter(const std::string& path) {
    const std::string directory = path.substr(0, path.rfind('/'));
    STILL_RETURN_IF_ERROR(MakeDirectory(directory));
    absl::StrAppend(&script_, "cd ", directory, "\n");
    if (Exists(path)) absl::StrAppend(&script_, "rm ", NameOf(path), "\n");
    return absl::OkStatus();
  }

  std::string device_;
  std::string staging_;
  std::string script_;
  std::set<std::string> made_;
  int files_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<GuestRoot>> OpenGuestRootWithDebugfs(const GuestDisk& disk) {
  STILL_ASSIGN_OR_RETURN(std::vector<GuestFileSystem> parts, disk.FileSystems());
  bool others = false;
  for (const GuestFileSystem& part : parts) {
    if (!absl::StartsWith(part.type, "ext")) {
      others = true;
      continue;
    }
    STILL_ASSIGN_OR_RETURN(std::unique_ptr<DebugfsRoot> root, DebugfsRoot::Make(disk, part));
    if (!LooksLikeRoot(*root)) continue;
    STILL_RETURN_IF_ERROR(CheckExtClean(disk.raw_path(), part));
    return root;
  }
  if (others) return absl::PermissionDeniedError("without root's rights only ext4 can be written; run it as root");
  return NoRootFound(disk);
}

}  // namespace still::cli
