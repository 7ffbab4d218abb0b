// ls, cp: files of a snapshot without booting it, read by a kernel that is a program (user_files.h). With --host-kernel, for
// root, the host's own kernel mounts the file system for the length of the command, in a mount namespace that goes with it:
// nobody else sees it, and nothing of it can be left behind.
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <functional>
#include <iostream>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "base/absolute_path.h"
#include "base/file.h"
#include "base/mount_namespace.h"
#include "base/move_into_place.h"
#include "base/names.h"
#include "snapshot/export_place.h"
#include "tools/still/command_tree.h"
#include "tools/still/context.h"
#include "tools/still/format.h"
#include "tools/still/guest_tree.h"
#include "tools/still/image_mount.h"
#include "tools/still/interruption.h"
#include "tools/still/user_files.h"

namespace still::cli {
namespace {

constexpr size_t kLongestName = 200;  // Of 255; the rest is for what marks it as half done.

struct PathReference {
  ImageReference image;
  std::string path;
};

struct FileArguments {
  std::string path;
  std::string destination;
  bool host_kernel = false;
};

// "SNAPSHOT[:DISK[:PARTITION]]:/path".
absl::StatusOr<PathReference> ParsePathReference(const std::string& text) {
  const size_t colon = text.find(":/");
  if (colon == std::string::npos) {
    return absl::InvalidArgumentError(absl::StrCat("\"", text, "\": write SNAPSHOT:/path or SNAPSHOT:DISK:/path"));
  }
  STILL_ASSIGN_OR_RETURN(ImageReference image, ParseImageReference(text.substr(0, colon)));
  return PathReference{.image = std::move(image), .path = text.substr(colon + 1)};
}

// From here on this process has mounts of its own, and an empty directory for them.
absl::StatusOr<std::string> PrivateMounts(const Context& context) {
  if (::geteuid() != 0) return absl::PermissionDeniedError("--host-kernel: only root may have the host's kernel mount");
  STILL_RETURN_IF_ERROR(EnterPrivateMountNamespace());
  const std::string base = JoinPath(context.state_directory(), "mounts");
  STILL_RETURN_IF_ERROR(MakeDirectories(base));
  if (::mount("still", base.c_str(), "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=0700") != 0) {
    return ErrnoStatus(errno, "mount tmpfs");
  }
  STILL_RETURN_IF_ERROR(MakeDirectories(JoinPath(base, "root")));
  return base;
}

// What `use` does with the mounted tree.
absl::Status WithTree(const Context& context, const ImageReference& reference,
                      const std::function<absl::Status(const GuestTree&)>& use) {
  STILL_ASSIGN_OR_RETURN(std::string base, PrivateMounts(context));
  STILL_ASSIGN_OR_RETURN(ImageFile file, ImageFile::Start(context, {.reference = reference, .directory = base}));
  const std::string root = JoinPath(base, "root");
  STILL_RETURN_IF_ERROR(MountFileSystem(file, root));
  absl::Status used = [&]() -> absl::Status {
    STILL_ASSIGN_OR_RETURN(GuestTree tree, GuestTree::Open(root));
    return use(tree);
  }();
  return FirstError(used, Unmount(root));
}

absl::StatusOr<std::vector<TreeEntry>> ListTree(const Context& context, const PathReference& reference,
                                                bool host_kernel) {
  if (!host_kernel) return ListAsUser(context, reference.image, reference.path);
  std::vector<TreeEntry> entries;
  STILL_RETURN_IF_ERROR(WithTree(context, reference.image, [&](const GuestTree& tree) -> absl::Status {
    STILL_ASSIGN_OR_RETURN(entries, tree.List(reference.path));
    return absl::OkStatus();
  }));
  return entries;
}

absl::Status CopyTree(const Context& context, const ImageReference& image, const TreeCopy& copy, bool host_kernel) {
  if (!host_kernel) return CopyAsUser(context, image, copy);
  return WithTree(context, image, [&](const GuestTree& tree) { return tree.Copy(copy); });
}

// What a copy is called in the end: in a directory, as what is copied.
absl::StatusOr<std::string> PlaceOfCopy(const std::string& source, const std::string& destination) {
  STILL_ASSIGN_OR_RETURN(const std::string absolute, AbsolutePath(destination));
  std::filesystem::path target = absolute;
  if (!target.has_filename()) target = target.parent_path();
  std::error_code error;
  if (std::filesystem::is_directory(target, error)) {
    const std::string name = std::filesystem::path(source).filename().string();
    target /= name.empty() ? "root" : name;
  }
  const std::filesystem::path parent = std::filesystem::canonical(target.parent_path(), error);
  if (error) return ErrnoStatus(error.value(), target.parent_path().string());
  const std::string place = (parent / target.filename()).string();
  if (PathExists(place)) {
    return absl::AlreadyExistsError(absl::StrCat(place, " exists; choose another place or remove it"));
  }
  return place;
}

// Where it is made. A guest's names may be as long as names can be, and this one gets an ending.
absl::StatusOr<std::unique_ptr<snapshot::ExportPlace>> PartialPlace(const std::string& place) {
  const std::filesystem::path path = place;
  return snapshot::ExportPlace::Make((path.parent_path() / path.filename().string().substr(0, kLongestName)).string(),
                                     snapshot::ExportPlace::Kind::kDirectory);
}

// A guest's directories may be closed to their owner, who could then neither move nor remove them.
void OpenToUs(const std::string& path) {
  std::error_code ignored;  // What stays closed is told by whoever cannot remove it.
  const auto open = [&](const std::filesystem::path& directory) {
    std::filesystem::permissions(directory, std::filesystem::perms::owner_all, std::filesystem::perm_options::add,
                                 ignored);
  };
  // A link leads wherever the guest wants.
  if (!std::filesystem::is_directory(std::filesystem::symlink_status(path, ignored))) return;
  open(path);
  std::filesystem::recursive_directory_iterator entry(path, ignored);
  for (const std::filesystem::recursive_directory_iterator end; entry != end; entry.increment(ignored)) {
    if (entry->is_directory(ignored) && !entry->is_symlink(ignored)) open(entry->path());
  }
}

absl::Status GiveName(const std::string& made, const std::string& place) {
  struct stat info {};
  if (::lstat(made.c_str(), &info) != 0) return ErrnoStatus(errno, made);
  // Moving a directory changes its "..", which needs the right to write in it.
  const bool closed = S_ISDIR(info.st_mode) && (info.st_mode & S_IWUSR) == 0;
  if (closed && ::chmod(made.c_str(), info.st_mode | S_IWUSR) != 0) return ErrnoStatus(errno, made);
  STILL_RETURN_IF_ERROR(MoveIntoPlace(made, place));
  if (closed && ::chmod(place.c_str(), info.st_mode) != 0) return ErrnoStatus(errno, place);
  return absl::OkStatus();
}

// Under its name it is whole; what does not come so far is removed. Gives the paths that were left out.
absl::StatusOr<std::vector<std::string>> CopyWhole(const Context& context, const PathReference& reference,
                                                   const FileArguments& arguments, const std::function<bool()>& go_on) {
  STILL_ASSIGN_OR_RETURN(const std::string place, PlaceOfCopy(reference.path, arguments.destination));
  STILL_ASSIGN_OR_RETURN(auto partial, PartialPlace(place));
  const std::string made = JoinPath(partial->partial(), std::filesystem::path(place).filename().string());
  const std::vector<std::pair<std::string, std::string>> as_named = {{made, place}};
  std::vector<std::string> skipped;
  absl::Status copied =
      CopyTree(context, reference.image,
               {.path = reference.path,
                .destination = made,
                .skipped = [&](const std::string& path) { skipped.push_back(absl::StrReplaceAll(path, as_named)); },
                .go_on = go_on},
               arguments.host_kernel);
  if (!copied.ok()) copied = absl::Status(copied.code(), absl::StrReplaceAll(copied.message(), as_named));
  // Only what is no file at all has made nothing.
  if (copied.ok() && PathExists(made)) {
    copied = ::syncfs(partial->fd()) == 0 ? GiveName(made, place) : ErrnoStatus(errno, absl::StrCat("sync ", place));
  }
  if (PathExists(made)) OpenToUs(made);
  if (!copied.ok()) return copied;
  return skipped;
}

std::string ModeText(mode_t mode) {
  std::string text = "?rwxrwxrwx";
  text[0] = S_ISDIR(mode)   ? 'd'
            : S_ISLNK(mode) ? 'l'
            : S_ISREG(mode) ? '-'
            : S_ISCHR(mode) ? 'c'
            : S_ISBLK(mode) ? 'b'
                            : '?';
  for (int bit = 0; bit < 9; ++bit) {
    if ((mode & (0400u >> bit)) == 0) text[static_cast<size_t>(bit) + 1] = '-';
  }
  return text;
}

absl::Status ListFiles(Context& context, const FileArguments& arguments) {
  STILL_ASSIGN_OR_RETURN(PathReference reference, ParsePathReference(arguments.path));
  STILL_ASSIGN_OR_RETURN(std::vector<TreeEntry> entries, ListTree(context, reference, arguments.host_kernel));
  nlohmann::json list = nlohmann::json::array();
  std::vector<std::vector<std::string>> rows = {{"MODE", "OWNER", "SIZE", "CHANGED", "NAME"}};
  for (const TreeEntry& entry : entries) {
    const int64_t changed = entry.info.st_mtim.tv_sec * int64_t{1'000'000'000} + entry.info.st_mtim.tv_nsec;
    const std::string shown =
        entry.link_target.empty() ? entry.name : absl::StrCat(entry.name, " -> ", entry.link_target);
    rows.push_back({ModeText(entry.info.st_mode), absl::StrCat(entry.info.st_uid, ":", entry.info.st_gid),
                    absl::StrCat(entry.info.st_size), FormatUnixNanos(changed), shown});
    list.push_back({{"name", EscapeName(entry.name)},
                    {"mode", entry.info.st_mode},
                    {"uid", entry.info.st_uid},
                    {"gid", entry.info.st_gid},
                    {"size", entry.info.st_size},
                    {"changed_unix_ns", changed},
                    {"link_target", EscapeName(entry.link_target)}});
  }
  context.Print(list, [&] { std::cout << FormatTable(rows); });
  return absl::OkStatus();
}

absl::Status CopyFiles(Context& context, const FileArguments& arguments) {
  STILL_ASSIGN_OR_RETURN(PathReference reference, ParsePathReference(arguments.path));
  Interruption interruption;
  STILL_ASSIGN_OR_RETURN(const std::vector<std::string> skipped,
                         CopyWhole(context, reference, arguments, [&] { return !interruption.asked(); }));
  nlohmann::json left_out = nlohmann::json::array();
  for (const std::string& path : skipped) left_out.push_back(EscapeName(path));
  context.Print(
      {{"copied", EscapeName(reference.path)}, {"to", EscapeName(arguments.destination)}, {"skipped", left_out}}, [&] {
        for (const std::string& path : skipped) std::cerr << "still: left out, no file: " << Printable(path) << "\n";
      });
  return absl::OkStatus();
}

}  // namespace

void AddFileCommands(CLI::App& app, Context& context) {
  auto arguments = std::make_shared<FileArguments>();
  CLI::App* ls = context.AddCommand(app, "ls", "List files of a snapshot without booting it",
                                    [=](Context& c) { return ListFiles(c, *arguments); });
  CLI::App* cp = context.AddCommand(app, "cp", "Copy a file or a directory out of a snapshot without booting it",
                                    [=](Context& c) { return CopyFiles(c, *arguments); });
  for (CLI::App* command : {ls, cp}) {
    command->add_option("path", arguments->path, "SNAPSHOT[:DISK[:PARTITION]]:/path")
        ->required()
        ->type_name(kGuestPathType);
    command->add_flag("--host-kernel", arguments->host_kernel,
                      "As root: trust the guest's file system to the host's own kernel (any type; faster)");
  }
  cp->add_option("destination", arguments->destination, "A new file or directory, or one to put it into")
      ->required()
      ->type_name(kFileType);
}

}  // namespace still::cli
