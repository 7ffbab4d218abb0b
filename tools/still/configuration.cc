#include "tools/still/configuration.h"

#include <CLI/CLI.hpp>
#include <fstream>
#include <vector>

#include "base/file.h"
#include "base/log.h"

namespace still::cli {

std::map<std::string, std::string> ReadConfiguration(const std::string& path) {
  std::map<std::string, std::string> values;
  std::ifstream file(path);
  if (!file) return values;
  std::vector<CLI::ConfigItem> items;
  try {
    items = CLI::ConfigINI().from_config(file);
  } catch (const CLI::Error& error) {
    LogWarning("stilld's configuration is not read", {{"file", path}, {"error", error.what()}});
  }
  for (const CLI::ConfigItem& item : items) {
    if (!item.inputs.empty()) values[item.name] = item.inputs.front();
  }
  return values;
}

std::string ChooseRepository(const std::string& given, const std::string& state, const std::string& configuration) {
  if (!given.empty()) return given;
  if (state == kServiceState) {
    if (std::string service = ReadConfiguration(configuration)["repo"]; !service.empty()) return service;
  }
  return JoinPath(state, "repository");
}

}  // namespace still::cli
