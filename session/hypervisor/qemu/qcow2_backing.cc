#include "session/hypervisor/qemu/qcow2_backing.h"

#include <endian.h>
#include <fcntl.h>
#include <sys/stat.h>

#include <cstring>
#include <filesystem>
#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/fd.h"
#include "base/file.h"

namespace still::session {
namespace {

constexpr size_t kMaxChain = 32;
constexpr uint32_t kMaxName = 1023;  // Of a backing file, by the specification.
constexpr uint32_t kMaxExtension = 1 << 16;
constexpr int kMaxExtensions = 64;
constexpr uint64_t kShortHeader = 72;  // Of version 2.
constexpr uint64_t kExternalData = uint64_t{1} << 2;
constexpr uint32_t kFormatExtension = 0xe2792aca;

struct ImageHeader {
  char magic[4];
  uint32_t version;
  uint64_t backing_file_offset;
  uint32_t backing_file_size;
  char between[52];
  uint64_t incompatible_features;  // This and what follows: version 3.
  char more[20];
  uint32_t header_length;
};
static_assert(sizeof(ImageHeader) == 104);

struct ExtensionHeader {
  uint32_t type;
  uint32_t length;
};

// Empty: the image does not say.
absl::StatusOr<std::string> FormatBelow(int fd, uint64_t at, uint64_t end, const std::string& path) {
  for (int i = 0; i < kMaxExtensions && at + sizeof(ExtensionHeader) <= end; ++i) {
    ExtensionHeader extension{};
    STILL_RETURN_IF_ERROR(PReadExactly(fd, &extension, sizeof extension, at, path));
    const uint32_t length = be32toh(extension.length);
    at += sizeof extension;
    if (extension.type == 0 || length > kMaxExtension) break;
    if (be32toh(extension.type) == kFormatExtension) {
      std::string format(length, '\0');
      STILL_RETURN_IF_ERROR(PReadExactly(fd, format.data(), format.size(), at, path));
      return format;
    }
    at += (uint64_t{length} + 7) / 8 * 8;
  }
  return std::string();
}

// nullopt: the image stands alone.
absl::StatusOr<std::optional<BackingImage>> Below(const std::string& path) {
  STILL_ASSIGN_OR_RETURN(OwnedFd file, OpenFile(path, O_RDONLY));
  ImageHeader header{};
  STILL_RETURN_IF_ERROR(PReadExactly(file.get(), &header, kShortHeader, 0, path));
  if (std::memcmp(header.magic, "QFI\xfb", sizeof header.magic) != 0) {
    return absl::FailedPreconditionError(absl::StrCat(path, " is no qcow2 file"));
  }
  uint64_t header_bytes = kShortHeader;
  if (be32toh(header.version) >= 3) {
    STILL_RETURN_IF_ERROR(PReadExactly(file.get(), &header, sizeof header, 0, path));
    header_bytes = be32toh(header.header_length);
    if ((be64toh(header.incompatible_features) & kExternalData) != 0) {
      return absl::UnimplementedError(absl::StrCat(path, " keeps its data in another file"));
    }
  }
  const uint64_t name_at = be64toh(header.backing_file_offset);
  const uint32_t name_bytes = be32toh(header.backing_file_size);
  if (name_at == 0) return std::nullopt;
  if (name_bytes == 0 || name_bytes > kMaxName) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": the name of its backing file has ", name_bytes, " bytes"));
  }
  std::string name(name_bytes, '\0');
  STILL_RETURN_IF_ERROR(PReadExactly(file.get(), name.data(), name.size(), name_at, path));
  // "nbd://..." and "json:..." are no files; a colon behind a slash belongs to a file's name.
  if (name.find(':') < name.find('/')) {
    return absl::UnimplementedError(absl::StrCat(path, " lies over ", name, ", which is no file"));
  }
  BackingImage below{.path = std::filesystem::path(path).parent_path() / name};
  STILL_ASSIGN_OR_RETURN(below.format, FormatBelow(file.get(), header_bytes, name_at, path));
  if (below.format != "qcow2" && below.format != "raw") {
    return absl::UnimplementedError(absl::StrCat(
        path, below.format.empty() ? " does not say the format of its backing file (`qemu-img rebase -u -F`)"
                                   : absl::StrCat(" lies over an image of format ", below.format)));
  }
  return below;
}

}  // namespace

absl::StatusOr<std::vector<BackingImage>> BackingChainOf(const std::string& path) {
  std::vector<BackingImage> chain;
  std::string at = path;
  for (;;) {
    STILL_ASSIGN_OR_RETURN(std::optional<BackingImage> below, Below(at));
    if (!below.has_value()) return chain;
    at = below->path;
    const bool last = below->format != "qcow2";
    chain.push_back(*std::move(below));
    if (last) return chain;
    if (chain.size() > kMaxChain) return absl::UnimplementedError(absl::StrCat(path, ": its chain is too long"));
  }
}

}  // namespace still::session
