// Labels as commands take them: key=value to give one, KEY or KEY=VALUE to ask for one.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "base/status.h"

namespace still::cli {

// What --label gives a snapshot. INVALID_ARGUMENT for one without a key, or with text that could not be stored and shown.
absl::StatusOr<std::map<std::string, std::string>> ParseLabels(const std::vector<std::string>& words);

// What --label asks for: a snapshot fits that has them all. A word without "=" fits any value.
class LabelFilter {
 public:
  static absl::StatusOr<LabelFilter> Parse(const std::vector<std::string>& words);

  // `labels`: a map of strings.
  template <typename Map>
  bool Fits(const Map& labels) const {
    for (const Wanted& wanted : wanted_) {
      auto found = labels.find(wanted.key);
      if (found == labels.end() || (!wanted.any_value && found->second != wanted.value)) return false;
    }
    return true;
  }

 private:
  struct Wanted {
    std::string key;
    std::string value;
    bool any_value = false;
  };
  std::vector<Wanted> wanted_;
};

}  // namespace still::cli
