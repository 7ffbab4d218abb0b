#include "tools/still/vanished.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "base/log.h"
#include "tools/still/choose.h"

namespace still::cli {
namespace {

constexpr size_t kShortestId = 12;  // As they are shown: what is removed is named in full.

}  // namespace

absl::Status WarnOfVanished(store::Repository& repository) {
  STILL_ASSIGN_OR_RETURN(const std::vector<store::VanishedSnapshot> vanished, repository.Vanished());
  for (const store::VanishedSnapshot& one : vanished) {
    LogWarning(
        "a snapshot has vanished though nobody has forgotten it; `still repair` puts back what is known of it, "
        "`still forget` with its id gives it up",
        {{"id", one.id.substr(0, 12)}, {"name", one.name}, {"session", one.session}, {"host", one.host}});
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> TakeVanished(store::Repository& repository,
                                                      std::vector<std::string>& references) {
  STILL_ASSIGN_OR_RETURN(const std::vector<store::VanishedSnapshot> vanished, repository.Vanished());
  std::vector<std::string> ids;
  std::erase_if(references, [&](const std::string& reference) {
    if (vanished.empty() || IsPattern(reference) || repository.FindSnapshot(reference).ok()) return false;
    std::vector<std::string> meant;
    for (const store::VanishedSnapshot& one : vanished) {
      const bool by_id = reference.size() >= kShortestId && absl::StartsWith(one.id, reference);
      if (by_id || one.name == reference) meant.push_back(one.id);
    }
    if (meant.size() != 1) return false;
    if (std::find(ids.begin(), ids.end(), meant[0]) == ids.end()) ids.push_back(meant[0]);
    return true;
  });
  return ids;
}

}  // namespace still::cli
