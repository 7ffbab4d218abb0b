#include "tools/still/labels.h"

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/name_match.h"
#include "base/names.h"

namespace still::cli {
namespace {

absl::StatusOr<std::pair<std::string, std::string>> ParseLabel(const std::string& word) {
  std::pair<std::string, std::string> label = absl::StrSplit(word, absl::MaxSplits('=', 1));
  if (label.first.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("label ", Quoted(word), ": write it like key=value"));
  }
  STILL_RETURN_IF_ERROR(CheckText("label", word));
  return label;
}

}  // namespace

absl::StatusOr<std::map<std::string, std::string>> ParseLabels(const std::vector<std::string>& words) {
  std::map<std::string, std::string> labels;
  for (const std::string& word : words) {
    STILL_ASSIGN_OR_RETURN(auto label, ParseLabel(word));
    if (!labels.insert(label).second) {
      return absl::InvalidArgumentError(absl::StrCat("label ", Quoted(label.first), ": it is given twice"));
    }
  }
  return labels;
}

absl::StatusOr<LabelFilter> LabelFilter::Parse(const std::vector<std::string>& words) {
  LabelFilter filter;
  for (const std::string& word : words) {
    STILL_ASSIGN_OR_RETURN(auto label, ParseLabel(word));
    filter.wanted_.push_back({.key = label.first, .value = label.second, .any_value = !absl::StrContains(word, '=')});
  }
  return filter;
}

}  // namespace still::cli
