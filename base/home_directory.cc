#include "base/home_directory.h"

#include <pwd.h>
#include <stdlib.h>
#include <unistd.h>

#include <array>

#include "absl/strings/match.h"
#include "base/file.h"

namespace still {
namespace {

// More than any line of a user database.
constexpr size_t kUserEntryBytes = 16384;

std::string Variable(const char* name) {
  const char* value = ::getenv(name);
  return value == nullptr ? "" : value;
}

}  // namespace

std::string HomeDirectory() {
  if (std::string home = Variable("HOME"); !home.empty()) return home;
  std::array<char, kUserEntryBytes> bytes;
  struct passwd entry {};
  struct passwd* found = nullptr;
  if (::getpwuid_r(::geteuid(), &entry, bytes.data(), bytes.size(), &found) != 0 || found == nullptr) return "";
  return found->pw_dir;
}

std::string DefaultStateDirectory() {
  if (std::string state = Variable("STILL_STATE"); !state.empty()) return state;
  if (::geteuid() == 0) return "/var/lib/stillpoint";
  // XDG Base Directory Specification: what is relative is to be ignored.
  if (std::string state = Variable("XDG_STATE_HOME"); absl::StartsWith(state, "/"))
    return JoinPath(state, "stillpoint");
  const std::string home = HomeDirectory();
  return absl::StartsWith(home, "/") ? JoinPath(home, ".local/state/stillpoint") : "";
}

}  // namespace still
