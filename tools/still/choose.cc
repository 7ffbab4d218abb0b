#include "tools/still/choose.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/name_match.h"
#include "schedule/schedule.h"

namespace still::cli {

bool IsPattern(const std::string& word) { return word.find_first_of("*?") != std::string::npos; }

bool FitsOneOf(const std::vector<std::string>& words, const std::string& text) {
  return words.empty() || std::any_of(words.begin(), words.end(), [&](const std::string& word) {
           return word == text || schedule::MatchesPattern(text, word);
         });
}

absl::StatusOr<std::vector<std::string>> ChooseNames(
    const std::string& kind, const std::vector<std::string>& words, std::vector<std::string> names,
    const std::function<absl::StatusOr<std::string>(const std::string& word)>& resolve) {
  std::sort(names.begin(), names.end());
  std::vector<std::string> chosen;
  auto choose = [&chosen](const std::string& name) {
    if (std::find(chosen.begin(), chosen.end(), name) == chosen.end()) chosen.push_back(name);
  };
  for (const std::string& word : words) {
    if (!IsPattern(word)) {
      STILL_ASSIGN_OR_RETURN(const std::string name, resolve(word));
      choose(name);
      continue;
    }
    bool fits = false;
    for (const std::string& name : names) {
      if (!schedule::MatchesPattern(name, word)) continue;
      fits = true;
      choose(name);
    }
    if (!fits) return absl::NotFoundError(absl::StrCat("no ", kind, " fits ", Quoted(word)));
  }
  return chosen;
}

absl::StatusOr<std::vector<manifestpb::Snapshot>> ChooseSnapshots(store::Repository& repository,
                                                                  const std::vector<std::string>& words) {
  std::vector<manifestpb::Snapshot> chosen;
  std::set<std::string> ids;
  for (const std::string& word : words) {
    if (!IsPattern(word)) {
      STILL_ASSIGN_OR_RETURN(manifestpb::Snapshot snapshot, repository.FindSnapshot(word));
      if (ids.insert(snapshot.id()).second) chosen.push_back(std::move(snapshot));
      continue;
    }
    bool fits = false;
    STILL_ASSIGN_OR_RETURN(std::vector<manifestpb::Snapshot> all, repository.ListSnapshots());
    for (manifestpb::Snapshot& snapshot : all) {
      if (snapshot.name().empty() || !schedule::MatchesPattern(snapshot.name(), word)) continue;
      fits = true;
      if (ids.insert(snapshot.id()).second) chosen.push_back(std::move(snapshot));
    }
    if (!fits) return absl::NotFoundError(absl::StrCat("no snapshot's name fits ", Quoted(word)));
  }
  return chosen;
}

}  // namespace still::cli
