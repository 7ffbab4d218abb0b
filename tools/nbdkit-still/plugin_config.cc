#include "tools/nbdkit-still/plugin_config.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/file.h"

namespace still::served {
namespace {

constexpr size_t kMaxPassphrase = 64 << 10;

// nbdkit may change its working directory before the repository is opened.
absl::StatusOr<std::string> AbsolutePath(absl::string_view path) {
  char* resolved = ::realpath(std::string(path).c_str(), nullptr);
  if (resolved == nullptr) return ErrnoStatus(errno, path);
  std::string result = resolved;
  std::free(resolved);
  return result;
}

// A file is read from its beginning, whatever others have read of it through the same descriptor: a server that is
// started again is given the same, and several sessions share one.
absl::StatusOr<std::string> ReadPassphrase(int fd) {
  struct stat info {};
  if (::fstat(fd, &info) != 0) return ErrnoStatus(errno, "passphrase-fd");
  std::string text(kMaxPassphrase + 1, '\0');
  size_t size = 0;
  while (size < text.size()) {
    char* to = text.data() + size;
    const size_t room = text.size() - size;
    ssize_t got = S_ISREG(info.st_mode) ? ::pread(fd, to, room, static_cast<off_t>(size)) : ::read(fd, to, room);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoStatus(errno, "passphrase-fd");
    if (got == 0) break;
    size += static_cast<size_t>(got);
  }
  if (size > kMaxPassphrase) return absl::InvalidArgumentError("passphrase-fd: longer than 64 KiB");
  text.resize(size);
  return std::string(absl::StripSuffix(text, "\n"));
}

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

}  // namespace

absl::Status PluginConfig::Set(absl::string_view key, absl::string_view value) {
  if (key == "repository") {
    STILL_ASSIGN_OR_RETURN(repository_, AbsolutePath(value));
  } else if (key == "key-file") {
    STILL_ASSIGN_OR_RETURN(key_file_, AbsolutePath(value));
  } else if (key == "snapshot") {
    snapshot_ = std::string(value);
  } else if (key == "image") {
    image_ = std::string(value);
  } else if (key == "passphrase-fd") {
    if (!absl::SimpleAtoi(value, &passphrase_fd_) || passphrase_fd_ < 0) {
      return absl::InvalidArgumentError(absl::StrCat("passphrase-fd=", value, ": not a descriptor's number"));
    }
  } else {
    return absl::InvalidArgumentError(
        absl::StrCat("unknown key \"", key, "\"; there are: repository, snapshot, image, key-file, passphrase-fd"));
  }
  return absl::OkStatus();
}

absl::Status PluginConfig::Check() const {
  if (repository_.empty()) return absl::InvalidArgumentError("say which: repository=DIRECTORY");
  return absl::OkStatus();
}

absl::StatusOr<ServedImages::Options> PluginConfig::Read() const {
  ServedImages::Options options{.repository = {.path = repository_}, .snapshot = snapshot_, .default_export = image_};
  store::Credentials& credentials = options.repository.credentials;
  if (passphrase_fd_ >= 0) {
    STILL_ASSIGN_OR_RETURN(credentials.passphrase, ReadPassphrase(passphrase_fd_));
  } else if (!key_file_.empty()) {
    credentials.key_file = key_file_;
  } else {
    credentials.passphrase = Environment("STILL_PASSPHRASE");
    credentials.key_file = Environment("STILL_KEY_FILE");
  }
  return options;
}

}  // namespace still::served
