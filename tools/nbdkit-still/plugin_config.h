// What nbdkit's command line says to the plugin: key=value words, checked before anything is opened.
#pragma once

#include <string>

#include "absl/strings/string_view.h"
#include "base/status.h"
#include "tools/nbdkit-still/served_images.h"

namespace still::served {

class PluginConfig {
 public:
  // One word. INVALID_ARGUMENT for an unknown key, NOT_FOUND for a file that is not there.
  absl::Status Set(absl::string_view key, absl::string_view value);
  // Everything that is needed was said.
  absl::Status Check() const;
  // Reads the passphrase, from its descriptor or from STILL_PASSPHRASE; or takes the key file, from its key or from
  // STILL_KEY_FILE. What was said to the plugin comes before the environment.
  absl::StatusOr<ServedImages::Options> Read() const;

 private:
  std::string repository_;
  std::string snapshot_;
  std::string image_;
  std::string key_file_;
  int passphrase_fd_ = -1;
};

}  // namespace still::served
