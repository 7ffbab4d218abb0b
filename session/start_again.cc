#include "session/start_again.h"

#include <endian.h>
#include <fcntl.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/fd.h"
#include "base/file.h"
#include "base/log.h"

namespace still::session {
namespace {

// The beginning of a qcow2 file (QEMU's docs/interop/qcow2.txt): magic, version, then where the name of the backing file
// stands, 0 if there is none; all big-endian.
struct Qcow2Header {
  char magic[4];
  uint32_t version;
  uint64_t backing_file_offset;
};

}  // namespace

absl::StatusOr<bool> LacksSomething(const std::string& path) {
  STILL_ASSIGN_OR_RETURN(OwnedFd file, OpenFile(path, O_RDONLY));
  Qcow2Header header;
  STILL_RETURN_IF_ERROR(PReadExactly(file.get(), reinterpret_cast<char*>(&header), sizeof header, 0, path));
  if (std::memcmp(header.magic, "QFI\xfb", sizeof header.magic) != 0) {
    return absl::DataLossError(absl::StrCat(path, " is no qcow2 file"));
  }
  return be64toh(header.backing_file_offset) != 0;
}

bool NeedsDiskServer(const sessionpb::SessionConfig& config) {
  return std::any_of(config.disks().begin(), config.disks().end(), [](const sessionpb::DiskFile& disk) {
    if (disk.backing_export().empty()) return false;
    absl::StatusOr<bool> lacks = LacksSomething(disk.path());
    if (!lacks.ok()) LogWarning("a lazily restored disk", {{"error", lacks.status().ToString()}});
    return lacks.value_or(!absl::IsNotFound(lacks.status()));
  });
}

absl::StatusOr<sessionpb::SessionConfig> ConfigToStartAgain(sessionpb::SessionConfig config,
                                                            const std::optional<sessionpb::SessionStart>& last) {
  if (config.adopt_pid() != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("session ", config.name(), " was a process that somebody else started; adopt it again"));
  }
  config.clear_restore();
  if (!last.has_value() || (last->ready() && !last->network_down())) config.clear_identity();
  bool needs_server = false;
  for (sessionpb::DiskFile& disk : *config.mutable_disks()) {
    if (disk.backing_export().empty()) continue;
    STILL_ASSIGN_OR_RETURN(bool lacks, LacksSomething(disk.path()));
    if (!lacks) disk.clear_backing_export();
    needs_server |= lacks;
  }
  if (!needs_server) config.clear_disk_server();
  return config;
}

}  // namespace still::session
