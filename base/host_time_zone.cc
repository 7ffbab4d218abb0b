#include "base/host_time_zone.h"

#include <stdlib.h>
#include <sys/stat.h>

#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

namespace still {
namespace {

// Below it a file's path is the name of its zone.
constexpr absl::string_view kZones = "/zoneinfo/";

}  // namespace

HostTimeZone& HostTimeZone::Real() {
  static HostTimeZone* zone = new HostTimeZone("/etc/localtime");
  return *zone;
}

absl::TimeZone HostTimeZone::Now() {
  const char* given = ::getenv("TZ");
  if (given == nullptr) return FromFile(file_);
  const absl::string_view name = absl::StripPrefix(given, ":");
  if (!name.empty() && name[0] == '/') return FromFile(std::string(name));
  absl::TimeZone zone = absl::UTCTimeZone();
  (void)absl::LoadTimeZone(name, &zone);  // UTC is what libc makes of an unknown name.
  return zone;
}

absl::TimeZone HostTimeZone::FromFile(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) return absl::UTCTimeZone();
  std::error_code error;
  const std::string canonical = std::filesystem::canonical(path, error).string();
  const absl::string_view target = canonical;
  std::string version = absl::StrCat(target, " ", info.st_dev, " ", info.st_ino, " ", info.st_size, " ",
                                     info.st_mtim.tv_sec, " ", info.st_mtim.tv_nsec);
  absl::MutexLock lock(&mutex_);
  if (version == seen_) return zone_;
  seen_ = std::move(version);
  if (size_t at = target.rfind(kZones); at != absl::string_view::npos) {
    if (absl::LoadTimeZone(target.substr(at + kZones.size()), &zone_)) return zone_;
  }
  // A copy of such a file. What was loaded by a path is never loaded again by it, so each version gets a path of its own.
  if (!absl::LoadTimeZone(absl::StrCat(std::string(++versions_, '/'), path), &zone_)) zone_ = absl::UTCTimeZone();
  return zone_;
}

}  // namespace still
