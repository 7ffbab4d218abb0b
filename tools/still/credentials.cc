#include "tools/still/credentials.h"

#include <cstdlib>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/file.h"
#include "base/secret.h"

namespace still::cli {
namespace {

constexpr size_t kLongestPassphrase = 4096;

std::string Variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

}  // namespace

absl::StatusOr<store::Credentials> FindCredentials(const CredentialSources& sources) {
  if (!sources.key_file.empty()) return store::Credentials{.key_file = sources.key_file};
  store::Credentials credentials{.passphrase = sources.passphrase};
  if (sources.secret_fd >= 0) {
    STILL_ASSIGN_OR_RETURN(credentials.passphrase, ReadSecretFd(sources.secret_fd));
  }
  if (credentials.empty()) credentials.key_file = Variable("STILL_KEY_FILE");
  const std::string directory = Variable("CREDENTIALS_DIRECTORY");
  if (!credentials.empty() || directory.empty()) return credentials;
  const std::string path = JoinPath(directory, kPassphraseCredential);
  if (!PathExists(path)) return credentials;
  STILL_ASSIGN_OR_RETURN(credentials.passphrase, ReadPassphraseFile(path));
  return credentials;
}

absl::StatusOr<std::string> ReadPassphraseFile(const std::string& path) {
  STILL_ASSIGN_OR_RETURN(std::string text, ReadFile(path, kLongestPassphrase));
  std::string passphrase(absl::StripSuffix(text, "\n"));
  if (passphrase.empty()) return absl::InvalidArgumentError(absl::StrCat(path, ": there is no passphrase in it"));
  return passphrase;
}

}  // namespace still::cli
