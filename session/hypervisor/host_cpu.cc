#include "session/hypervisor/host_cpu.h"

#include <algorithm>

#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/file.h"

namespace still::session {

std::vector<std::string> HostCpuFeatures(const std::string& root) {
  // A host with hundreds of processors describes each; the first is enough.
  constexpr size_t kMaxBytes = 16 << 20;
  auto text = ReadFile(JoinPath(root, "proc/cpuinfo"), kMaxBytes);
  if (!text.ok()) return {};
  for (absl::string_view line : absl::StrSplit(*text, '\n')) {
    if (!absl::ConsumePrefix(&line, "flags")) continue;
    std::pair<absl::string_view, absl::string_view> parts = absl::StrSplit(line, absl::MaxSplits(':', 1));
    std::vector<std::string> flags = absl::StrSplit(parts.second, ' ', absl::SkipWhitespace());
    std::sort(flags.begin(), flags.end());
    return flags;
  }
  return {};
}

}  // namespace still::session
