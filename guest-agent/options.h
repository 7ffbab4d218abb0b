// What the agent is told: by the kernel's command line (the host chooses it) and by its own options (which win).
//
//   still.port=1024    vsock port of the host to dial
//   still.agent=off    do nothing: the agent exits with code 0
#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "base/status.h"
#include "guest-agent/connection.h"
#include "guest-agent/hooks.h"

namespace still::agent {

struct Options {
  Endpoint endpoint;                               // --connect vsock:PORT | vsock:CID:PORT | unix:PATH
  std::string listen;                              // --listen unix:PATH: accept instead of dialling (for tests).
  std::string cmdline = "/proc/cmdline";           // --cmdline FILE
  std::string marker = "/run/still-agent/frozen";  // --marker FILE
  HookDirectories hooks;                           // --hooks DIR, --qemu-hooks DIR
  bool guardian = true;                            // --no-guardian
  bool off = false;
  bool help = false;
  bool version = false;
};

// INVALID_ARGUMENT names the option. `kernel_cmdline` is the text of Options::cmdline's file; unknown words in it are
// other people's, and a `still.` word that cannot be understood is an error rather than a silent default.
absl::StatusOr<Options> ParseOptions(const std::vector<std::string>& arguments);
absl::Status ApplyKernelCommandLine(absl::string_view text, Options& options);
std::string OptionsHelp();

}  // namespace still::agent
