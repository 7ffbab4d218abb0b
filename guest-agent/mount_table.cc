#include "guest-agent/mount_table.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace still::agent {
namespace {

bool IsOctal(char c) { return c >= '0' && c <= '7'; }

bool HasOption(absl::string_view options, absl::string_view wanted) {
  for (absl::string_view option : absl::StrSplit(options, ',')) {
    if (option == wanted) return true;
  }
  return false;
}

bool ParseDevice(absl::string_view text, DeviceId& device) {
  size_t colon = text.find(':');
  if (colon == absl::string_view::npos) return false;
  return absl::SimpleAtoi(text.substr(0, colon), &device.major) &&
         absl::SimpleAtoi(text.substr(colon + 1), &device.minor);
}

// 36 35 98:0 /root /mount rw,noatime shared:1 - ext4 /dev/root rw,errors=continue
// (1)(2)(3)  (4)   (5)    (6)        (7: any number)  (8)(9)       (10)
bool ParseLine(absl::string_view line, MountEntry& entry) {
  // Fields are split at every single space: a field may be empty (a mount whose source is the empty string).
  std::vector<absl::string_view> fields = absl::StrSplit(line, ' ');
  size_t dash = 6;
  while (dash < fields.size() && fields[dash] != "-") ++dash;
  if (dash + 3 >= fields.size()) return false;
  if (!absl::SimpleAtoi(fields[0], &entry.mount_id) || !absl::SimpleAtoi(fields[1], &entry.parent_id)) return false;
  if (!ParseDevice(fields[2], entry.device)) return false;
  entry.root = DecodeOctalEscapes(fields[3]);
  entry.mount_point = DecodeOctalEscapes(fields[4]);
  if (entry.mount_point.empty()) return false;
  entry.fs_type = DecodeOctalEscapes(fields[dash + 1]);
  entry.source = DecodeOctalEscapes(fields[dash + 2]);
  // Some file systems print their options unescaped: the rest of the line belongs to them.
  absl::string_view options = line.substr(static_cast<size_t>(fields[dash + 3].data() - line.data()));
  entry.super_options = DecodeOctalEscapes(options);
  entry.read_only_superblock = HasOption(options, "ro");
  return true;
}

}  // namespace

std::string DeviceId::ToString() const { return absl::StrCat(major, ":", minor); }

std::string DecodeOctalEscapes(absl::string_view text) {
  std::string decoded;
  decoded.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 3 < text.size() && text[i + 1] <= '3' && IsOctal(text[i + 1]) && IsOctal(text[i + 2]) &&
        IsOctal(text[i + 3])) {
      decoded += static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 + (text[i + 3] - '0'));
      i += 3;
    } else {
      decoded += text[i];
    }
  }
  return decoded;
}

absl::StatusOr<std::vector<MountEntry>> ParseMountTable(absl::string_view text) {
  if (text.size() > kMaxMountTableBytes) return absl::ResourceExhaustedError("mount table: too long");
  std::vector<MountEntry> entries;
  size_t number = 0;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    if (line.empty()) continue;
    if (entries.size() == kMaxMounts) return absl::ResourceExhaustedError("mount table: too many mounts");
    MountEntry entry;
    if (!ParseLine(line, entry)) {
      return absl::InvalidArgumentError(absl::StrCat("mount table: line ", number, " is no mountinfo"));
    }
    entries.push_back(std::move(entry));
  }
  return entries;
}

std::string MountOption(absl::string_view options, absl::string_view name) {
  for (absl::string_view option : absl::StrSplit(options, ',')) {
    if (option.size() > name.size() && option.substr(0, name.size()) == name && option[name.size()] == '=') {
      return std::string(option.substr(name.size() + 1));
    }
  }
  return "";
}

}  // namespace still::agent
