// ImageMount: an image of a snapshot as a file (nbdfuse over nbdkit over the repository), and its file system mounted by
// the kernel, read-only.
//
// A file system of a guest is hostile input to the kernel that mounts it: nothing here mounts what nobody asked for, and
// set-user-id files, devices and programs on it do nothing on the host.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "base/process.h"
#include "base/status.h"
#include "tools/still/context.h"

namespace still::cli {

// "SNAPSHOT", "SNAPSHOT:vda", "SNAPSHOT:vda:1".
struct ImageReference {
  std::string snapshot;
  std::string image;       // Empty: the only disk.
  uint32_t partition = 0;  // From 1; 0: the whole disk.
};
absl::StatusOr<ImageReference> ParseImageReference(const std::string& text);

// An image as a file, as long as the object lives (or for ever, after Release).
class ImageFile {
 public:
  struct Options {
    ImageReference reference;
    std::string directory;  // Exists; "fuse" is made in it.
    bool outlive = false;   // It goes on when this process ends; else it ends with it.
  };
  // Opens the repository to look the image up. NOT_FOUND, INVALID_ARGUMENT (which image?), FAILED_PRECONDITION (nbdfuse
  // is not installed).
  static absl::StatusOr<ImageFile> Start(const Context& context, const Options& options);
  ImageFile(ImageFile&& other) noexcept;
  ~ImageFile();

  const std::string& path() const { return path_; }
  const std::string& snapshot_id() const { return snapshot_id_; }
  const std::string& image() const { return image_; }
  void Release();

 private:
  explicit ImageFile(ChildProcess server) : server_(std::move(server)) {}
  std::optional<ChildProcess> server_;
  std::string path_;
  std::string snapshot_id_;
  std::string image_;
};

struct FileSystem {
  std::string type;     // "ext4"
  std::string options;  // To mount it read-only without replaying its journal; may be empty.
};
// FAILED_PRECONDITION when there is none that we mount; for a disk with partitions it lists them.
absl::StatusOr<FileSystem> FindFileSystem(const ImageFile& image);

// Mounts the file system in `image` on `directory`. Needs root. Errors also as FindFileSystem. Unmounting is
// umount(8).
absl::Status MountFileSystem(const ImageFile& image, const std::string& directory);

// What blkid finds in a file: "ext4"; empty when nothing.
absl::StatusOr<std::string> FileSystemType(const std::string& path);

// unmounts `directory` and waits until what lay under it can be unmounted too.
absl::Status Unmount(const std::string& directory);

}  // namespace still::cli
