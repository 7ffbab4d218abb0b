// mount, umount: a snapshot's files in a directory, read-only.
//
// <state>/mounts/<id>/   mount.json   what is mounted where
//                        fuse/        the image as a file
//                        log          what its server says
#include <stdlib.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <iostream>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/names.h"
#include "base/undo.h"
#include "tools/still/command_tree.h"
#include "tools/still/context.h"
#include "tools/still/image_mount.h"

namespace still::cli {
namespace {

constexpr size_t kMaxRecord = 64 << 10;

std::string MountsDirectory(const Context& context) { return JoinPath(context.state_directory(), "mounts"); }

absl::StatusOr<std::string> CanonicalDirectory(const std::string& path) {
  std::error_code error;
  std::filesystem::path canonical = std::filesystem::canonical(path, error);
  if (error) return ErrnoStatus(error.value(), path);
  if (!std::filesystem::is_directory(canonical, error)) {
    return absl::InvalidArgumentError(absl::StrCat(path, " is not a directory"));
  }
  return canonical.string();
}

// Nothing of it is mounted: plain files and empty directories.
absl::Status RemoveRecord(const std::string& record) {
  STILL_RETURN_IF_ERROR(Unmount(JoinPath(record, "fuse")));
  return RemoveTree(record);
}

absl::Status Mount(Context& context, const std::string& reference, const std::string& directory) {
  if (::geteuid() != 0) {
    return absl::PermissionDeniedError(
        "the kernel mounts for root only; `still ls`, `still cp` and `still serve` work without");
  }
  STILL_ASSIGN_OR_RETURN(ImageReference image, ParseImageReference(reference));
  STILL_ASSIGN_OR_RETURN(std::string target, CanonicalDirectory(directory));
  STILL_RETURN_IF_ERROR(MakeDirectories(MountsDirectory(context)));
  std::string record = JoinPath(MountsDirectory(context), "XXXXXX");
  if (::mkdtemp(record.data()) == nullptr) return ErrnoStatus(errno, absl::StrCat("mkdtemp ", record));
  UndoStack undo;
  undo.Push("remove the mount's record", [record] { return RemoveRecord(record); });
  STILL_ASSIGN_OR_RETURN(ImageFile file,
                         ImageFile::Start(context, {.reference = image, .directory = record, .outlive = true}));
  nlohmann::json description = {
      {"target", EscapeName(target)}, {"snapshot", file.snapshot_id()}, {"image", file.image()}};
  STILL_RETURN_IF_ERROR(WriteFileAtomically(JoinPath(record, "mount.json"), description.dump()));
  STILL_RETURN_IF_ERROR(MountFileSystem(file, target));
  file.Release();
  undo.Disarm();
  context.Print(description, [&] {
    std::cout << file.image() << " of " << file.snapshot_id().substr(0, 12) << " is on " << target
              << ", read-only; take it away with `still umount " << directory << "`\n";
  });
  return absl::OkStatus();
}

// Gives the directory's whole path.
absl::StatusOr<std::string> UmountOne(const Context& context, const std::string& directory) {
  STILL_ASSIGN_OR_RETURN(std::string target, CanonicalDirectory(directory));
  std::vector<std::string> records;
  if (PathExists(MountsDirectory(context))) {
    STILL_ASSIGN_OR_RETURN(records, ListDirectory(MountsDirectory(context)));
  }
  for (const std::string& name : records) {
    const std::string record = JoinPath(MountsDirectory(context), name);
    const std::string text = ReadFile(JoinPath(record, "mount.json"), kMaxRecord).value_or("");
    nlohmann::json description = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (!description.is_object() || !description.contains("target") || description["target"] != EscapeName(target))
      continue;
    STILL_RETURN_IF_ERROR(Unmount(target));
    STILL_RETURN_IF_ERROR(RemoveRecord(record));
    return target;
  }
  return absl::NotFoundError(absl::StrCat("no snapshot is mounted on ", target));
}

// All of them, also when one fails. Patterns of files are the shell's.
absl::Status Umount(Context& context, const std::vector<std::string>& directories) {
  nlohmann::json list = nlohmann::json::array();
  std::string sentences;
  absl::Status error;
  for (const std::string& directory : directories) {
    absl::StatusOr<std::string> done = UmountOne(context, directory);
    error = FirstError(error, done.status());
    if (!done.ok()) continue;
    list.push_back({{"unmounted", EscapeName(*done)}});
    absl::StrAppend(&sentences, *done, " is free\n");
  }
  const bool several = directories.size() > 1;
  if (several || !list.empty()) {
    context.Print(several ? list : list[0], [&] { std::cout << sentences; });
  }
  return error;
}

}  // namespace

void AddMountCommands(CLI::App& app, Context& context) {
  auto reference = std::make_shared<std::string>();
  auto directory = std::make_shared<std::string>();
  CLI::App* mount = context.AddCommand(
      app, "mount", "Mount a snapshot's file system, read-only (root). The kernel reads what the guest wrote: trust it",
      [=](Context& c) { return Mount(c, *reference, *directory); });
  mount->add_option("snapshot", *reference, "SNAPSHOT[:DISK[:PARTITION]]")->required();
  mount->add_option("directory", *directory, "Where")->required()->type_name(kDirectoryType);
  auto directories = std::make_shared<std::vector<std::string>>();
  CLI::App* umount =
      context.AddCommand(app, "umount", "Take such mounts away", [=](Context& c) { return Umount(c, *directories); });
  umount->add_option("directories", *directories, "Where they are mounted")->required()->type_name(kDirectoryType);
}

}  // namespace still::cli
