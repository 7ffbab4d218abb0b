#include "tools/still/disk_argument.h"

#include <filesystem>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/absolute_path.h"

namespace still::cli {

absl::Status AddDisk(const std::string& text, sessionpb::SessionConfig& config) {
  std::vector<std::string> parts = absl::StrSplit(text, ',');
  sessionpb::DiskFile& file = *config.add_disks();
  manifestpb::Disk& disk = *config.mutable_machine()->add_disks();
  STILL_ASSIGN_OR_RETURN(const std::string path, AbsolutePath(parts[0]));
  file.set_path(std::filesystem::path(path).lexically_normal().string());
  file.set_name(absl::StrCat("vd", std::string(1, static_cast<char>('a' + config.disks_size() - 1))));
  file.set_format(absl::EndsWith(parts[0], ".qcow2") ? "qcow2" : "raw");
  for (size_t i = 1; i < parts.size(); ++i) {
    std::pair<std::string, std::string> option = absl::StrSplit(parts[i], absl::MaxSplits('=', 1));
    if (option.first == "name") {
      file.set_name(option.second);
    } else if (option.first == "format") {
      file.set_format(option.second);
    } else if (option.first == "serial") {
      disk.set_serial(option.second);
    } else if (option.first == "ro") {
      disk.set_read_only(true);
    } else {
      return absl::InvalidArgumentError(
          absl::StrCat("disk \"", text, "\": \"", parts[i], "\" is not name=, format=, serial= or ro"));
    }
  }
  disk.set_name(file.name());
  return absl::OkStatus();
}

}  // namespace still::cli
