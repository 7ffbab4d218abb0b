// What opens a repository, as whoever started us has said it: for the command, for stilld, and for its workers.
#pragma once

#include <string>

#include "base/status.h"
#include "store/repository.h"

namespace still::cli {

// The credential of systemd (systemd.exec(5), "CREDENTIALS") that holds a repository's passphrase.
inline constexpr char kPassphraseCredential[] = "stillpoint.passphrase";

struct CredentialSources {
  std::string key_file;    // Of the command line.
  int secret_fd = -1;      // What stilld's workers are given: a descriptor of the passphrase.
  std::string passphrase;  // What TakeSecretVariable("STILL_PASSPHRASE") gave when the program began.
};

// The first of: the key file, the descriptor, the passphrase, STILL_KEY_FILE, the credential that systemd has given to
// our unit ($CREDENTIALS_DIRECTORY). Empty: none of them.
absl::StatusOr<store::Credentials> FindCredentials(const CredentialSources& sources);

// What a file with a passphrase holds; the end of its line does not belong to it. INVALID_ARGUMENT: nothing.
absl::StatusOr<std::string> ReadPassphraseFile(const std::string& path);

}  // namespace still::cli
