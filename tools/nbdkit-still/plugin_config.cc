#include "tools/nbdkit-still/plugin_config.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/file.h"
#include "base/secret.h"

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
    STILL_ASSIGN_OR_RETURN(credentials.passphrase, ReadSecretFd(passphrase_fd_));
  } else if (!key_file_.empty()) {
    credentials.key_file = key_file_;
  } else {
    credentials.passphrase = TakeSecretVariable("STILL_PASSPHRASE");
    credentials.key_file = Environment("STILL_KEY_FILE");
  }
  return options;
}

}  // namespace still::served
