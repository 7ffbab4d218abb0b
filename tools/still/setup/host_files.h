// HostFiles: what `still setup` writes on a host, so that stilld and its timers find repository and passphrase: files in
// /etc/stillpoint and drop-ins of the units. It starts nothing. Everything may be repeated: what is there already is left
// as it is. Blocking; not thread-safe.
//
// The passphrase is a credential of systemd (systemd.exec(5), "CREDENTIALS"): encrypted for this host where
// systemd-creds(1) can do that, else a file that only root reads.
#pragma once

#include <optional>
#include <string>

#include "absl/strings/string_view.h"
#include "base/status.h"

namespace still::cli {

// One thing that was to be, for people.
struct SetupStep {
  std::string what;     // "passphrase"
  bool changed = true;  // Else it was so already.
  std::string detail;   // One line.
};

class HostFiles {
 public:
  struct Places {
    std::string configuration = "/etc/stillpoint";
    std::string units = "/etc/systemd/system";
    std::string systemd_creds = "systemd-creds";  // The program.
  };
  explicit HostFiles(Places places) : places_(std::move(places)) {}

  // The passphrase that a unit would get; nullopt: none is stored.
  absl::StatusOr<std::optional<std::string>> StoredPassphrase() const;
  absl::StatusOr<SetupStep> StorePassphrase(const std::string& passphrase) const;
  // For stilld (stilld.conf) and for the timers (stilld.env); empty values are not touched.
  struct Settings {
    std::string repository;
    std::string key_file;
    std::string webhook;
    std::string notify_command;
    std::string mail_to;
    std::string ping;
  };
  absl::StatusOr<SetupStep> Configure(const Settings& settings) const;
  // INVALID_ARGUMENT for a path that systemd's files cannot have: ask before anything is made there.
  static absl::Status CheckRepository(const std::string& path);
  // Lets the units write a repository that is not in the state directory.
  absl::StatusOr<SetupStep> AllowWriting(const std::string& directory) const;

 private:
  std::string ConfigurationPath(absl::string_view name) const;
  // One for each unit that opens the repository. True: something changed.
  absl::StatusOr<bool> WriteDropIns(absl::string_view name, absl::string_view content) const;
  absl::StatusOr<bool> SetLine(const std::string& path, absl::string_view name, absl::string_view value,
                               int mode) const;

  const Places places_;
};

}  // namespace still::cli
