#include "session/machine_id.h"

#include <openssl/evp.h>

#include "absl/strings/escaping.h"
#include "absl/strings/string_view.h"
#include "base/check.h"

namespace still::session {
namespace {

constexpr size_t kIdBytes = 16;

}  // namespace

std::string StartedMachineId(const HostIdentity& host, const sessionpb::SessionConfig& config) {
  std::string text = "stillpoint machine 1";
  for (const std::string& part : {host.id.empty() ? host.name : host.id, config.name(),
                                  config.disks_size() > 0 ? config.disks(0).path() : config.kernel()}) {
    text += '\0';  // In no name and no path.
    text += part;
  }
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned size = 0;
  STILL_CHECK(::EVP_Digest(text.data(), text.size(), digest, &size, ::EVP_sha256(), nullptr) == 1 && size >= kIdBytes);
  return absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(digest), kIdBytes));
}

std::string MachineIdOf(const HostIdentity& host, const sessionpb::SessionConfig& config) {
  if (!config.machine_id().empty()) return config.machine_id();
  return config.origin_snapshot().empty() ? StartedMachineId(host, config) : config.id();
}

}  // namespace still::session
