#include "guest-agent/options.h"

#include <functional>
#include <map>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace still::agent {

std::string OptionsHelp() {
  return "still-agent: Stillpoint's guest agent. Dials the host and serves it for ever.\n"
         "  --connect ADDRESS   vsock:PORT, vsock:CID:PORT or unix:PATH (default: vsock:2:1024, or still.port)\n"
         "  --listen unix:PATH  accept connections there instead\n"
         "  --cmdline FILE      the kernel's command line (default /proc/cmdline): still.port=N, still.agent=off\n"
         "  --marker FILE       exists while frozen; must be on a tmpfs (default /run/still-agent/frozen)\n"
         "  --hooks DIR         freeze hooks (default /etc/still/hooks.d)\n"
         "  --qemu-hooks DIR    hooks of the QEMU guest agent (default fsfreeze-hook.d of /etc/qemu,\n"
         "                      /etc/qemu-ga and /etc/qemu-kvm)\n"
         "  --no-guardian       do not keep a second process that thaws and restarts the agent if it dies\n"
         "  --version, --help\n";
}

absl::StatusOr<Options> ParseOptions(const std::vector<std::string>& arguments) {
  Options options;
  std::string connect, qemu_hooks;
  std::map<absl::string_view, std::string*> with_value = {
      {"--connect", &connect},       {"--listen", &options.listen},   {"--cmdline", &options.cmdline},
      {"--marker", &options.marker}, {"--hooks", &options.hooks.own}, {"--qemu-hooks", &qemu_hooks}};
  std::map<absl::string_view, std::pair<bool*, bool>> flags = {{"--no-guardian", {&options.guardian, false}},
                                                               {"--help", {&options.help, true}},
                                                               {"--version", {&options.version, true}}};
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (auto flag = flags.find(arguments[i]); flag != flags.end()) {
      *flag->second.first = flag->second.second;
      continue;
    }
    std::pair<absl::string_view, absl::string_view> parts = absl::StrSplit(arguments[i], absl::MaxSplits('=', 1));
    auto option = with_value.find(parts.first);
    if (option == with_value.end()) return absl::InvalidArgumentError(absl::StrCat(arguments[i], ": unknown option"));
    if (absl::StrContains(arguments[i], '=')) {
      *option->second = std::string(parts.second);
    } else if (++i < arguments.size()) {
      *option->second = arguments[i];
    } else {
      return absl::InvalidArgumentError(absl::StrCat(parts.first, ": needs a value"));
    }
  }
  if (!options.listen.empty() && !absl::StartsWith(options.listen, "unix:")) {
    return absl::InvalidArgumentError("--listen: not unix:PATH");
  }
  if (!qemu_hooks.empty()) options.hooks.qemu = {{std::move(qemu_hooks), ""}};
  if (connect.empty()) return options;
  STILL_ASSIGN_OR_RETURN(options.endpoint, Endpoint::Parse(connect));
  options.cmdline.clear();  // Said more closely.
  return options;
}

absl::Status ApplyKernelCommandLine(absl::string_view text, Options& options) {
  for (absl::string_view word : absl::StrSplit(text, absl::ByAnyChar(" \t\n"), absl::SkipEmpty())) {
    if (absl::ConsumePrefix(&word, "still.port=")) {
      if (!absl::SimpleAtoi(word, &options.endpoint.port)) {
        return absl::InvalidArgumentError(absl::StrCat("still.port=", word, ": no port number"));
      }
    } else if (word == "still.agent=off") {
      options.off = true;
    }
  }
  return absl::OkStatus();
}

}  // namespace still::agent
