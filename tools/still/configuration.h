// stilld's configuration file, as far as commands follow it: so that a command and the service mean the same repository.
#pragma once

#include <map>
#include <string>

namespace still::cli {

inline constexpr char kConfigurationFile[] = "/etc/stillpoint/stilld.conf";
// The state directory that the file is about.
inline constexpr char kServiceState[] = "/var/lib/stillpoint";

// The last value of each option (man stilld), read as stilld reads it. Empty when there is no such file, or this user may
// not read it; one that cannot be understood is a line in the log.
std::map<std::string, std::string> ReadConfiguration(const std::string& path = kConfigurationFile);

// What --repo or STILL_REPO give if they do, else what the service uses where `state` is the service's, else the directory
// `repository` in `state`.
std::string ChooseRepository(const std::string& given, const std::string& state,
                             const std::string& configuration = kConfigurationFile);

}  // namespace still::cli
