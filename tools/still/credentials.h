// What opens a repository, as the environment says it: for the command, for stilld, and for its workers.
#pragma once

#include <string>

#include "base/status.h"
#include "store/repository.h"

namespace still::cli {

// The credential of systemd (systemd.exec(5), "CREDENTIALS") that holds a repository's passphrase.
inline constexpr char kPassphraseCredential[] = "stillpoint.passphrase";

// The first of: STILL_PASSPHRASE, STILL_KEY_FILE, the credential that systemd has given to our unit
// ($CREDENTIALS_DIRECTORY). Empty: none of them.
absl::StatusOr<store::Credentials> CredentialsOfEnvironment();

// What a file with a passphrase holds; the end of its line does not belong to it. INVALID_ARGUMENT: nothing.
absl::StatusOr<std::string> ReadPassphraseFile(const std::string& path);

}  // namespace still::cli
