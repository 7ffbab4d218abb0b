#include "snapshot/lazy_disk.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/file.h"
#include "base/process.h"
#include "base/secret.h"
#include "session/session_config.h"

namespace still::snapshot {
namespace {

constexpr absl::Duration kCreateLimit = absl::Seconds(60);
constexpr uint64_t kSector = 512;
// Not extended_l2, though it would spare small writes the reading of their cluster: QEMU 7.2's stream job aborts over
// clusters of which only a part is allocated (assertion in bdrv_co_do_copy_on_readv, mended in QEMU 8.2).
constexpr char kOverlayOptions[] = "cluster_size=64k";

}  // namespace

absl::Status MakeLazyDisk(const manifestpb::Image& image, const std::string& path, sessionpb::DiskFile& file) {
  // The header names what it lies over. Nothing of ours needs that, but nobody else takes the file for a whole disk.
  const std::string socket = JoinPath(std::filesystem::path(path).parent_path().string(), session::kDiskServerSocket);
  const uint64_t size = (image.size() + kSector - 1) / kSector * kSector;
  absl::StatusOr<CommandOutput> made =
      RunCommand({.argv = {"qemu-img", "create", "-q", "-f", "qcow2", "-o", kOverlayOptions, "-u", "-F", "raw", "-b",
                           absl::StrCat("nbd+unix:///", image.name(), "?socket=", socket), path, absl::StrCat(size)},
                  .end_with_parent = true},
                 kCreateLimit);
  if (!made.ok()) return Annotate(made.status(), "qemu-img");
  if (!made->exit.ok()) {
    return absl::UnavailableError(absl::StrCat("qemu-img create: ", absl::StripSuffix(made->stderr_text, "\n")));
  }
  file.set_path(path);
  file.set_format("qcow2");
  file.set_backing_export(image.name());
  return absl::OkStatus();
}

void DescribeDiskServer(const LazyDiskOptions& options, const std::string& snapshot_id,
                        sessionpb::SessionConfig& config) {
  const auto& disks = config.disks();
  if (std::all_of(disks.begin(), disks.end(), [](const auto& disk) { return disk.backing_export().empty(); })) return;
  sessionpb::DiskServer& server = *config.mutable_disk_server();
  for (const std::string& word : options.server_command) server.add_command(word);
  server.add_command(snapshot_id);
  server.set_hydrate(options.hydrate);
  server.set_hydrate_bytes_per_second(options.hydrate_bytes_per_second);
}

absl::StatusOr<OwnedFd> DiskSecret(const LazyDiskOptions& options) {
  if (options.passphrase.empty()) return OwnedFd();
  return MakeSecretFd(options.passphrase);
}

}  // namespace still::snapshot
