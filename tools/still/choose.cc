#include "tools/still/choose.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/name_match.h"
#include "schedule/schedule.h"
#include "store/snapshot_reference.h"

namespace still::cli {

bool IsPattern(const std::string& word) { return word.find_first_of("*?") != std::string::npos; }

absl::Status ExpectOneSession(const std::string& word) {
  if (!IsPattern(word)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(Quoted(word), " is a pattern, and this command is for one session: write its name"));
}

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

absl::StatusOr<std::vector<size_t>> FitsOnHost(const std::vector<manifestpb::Snapshot>& snapshots,
                                               const std::string& word, const TextOfSnapshot& text,
                                               const HostIdentity& here) {
  const store::Whose whose = store::ParseWhose(word);
  const std::string host(whose.host);
  const std::string name(whose.session);
  const auto is_meant = [&](const manifestpb::Snapshot& snapshot) {
    if (host.empty()) return store::IsOfHost(snapshot, here);
    return IsPattern(host) ? schedule::MatchesPattern(snapshot.host(), host) : store::IsOfNamedHost(snapshot, host);
  };
  std::vector<size_t> found;
  std::set<std::string> hosts;  // Those before there were ids go with any host of their host's name.
  std::set<std::string> others;
  for (size_t i = 0; i < snapshots.size(); ++i) {
    const std::string& given = text(snapshots[i]);
    if (given.empty() || !FitsOneOf({name}, given)) continue;
    if (!is_meant(snapshots[i])) {
      others.insert(store::HostText(snapshots[i]));
      continue;
    }
    found.push_back(i);
    if (!snapshots[i].host_id().empty()) hosts.insert(store::HostText(snapshots[i]));
  }
  const auto texts = [](const std::set<std::string>& of) {
    return ListSome(std::vector<std::string>(of.begin(), of.end()));
  };
  if (!host.empty() && !IsPattern(host) && hosts.size() > 1) {
    return absl::FailedPreconditionError(
        absl::StrCat(Quoted(word), ": several hosts are called so; write the id: ", texts(hosts)));
  }
  if (!found.empty()) return found;
  std::string why = absl::StrCat("no snapshot of ", host.empty() ? "this host" : absl::StrCat("a host ", Quoted(host)),
                                 " fits ", Quoted(name));
  if (!others.empty()) absl::StrAppend(&why, "; of others, write HOST/", name, ": ", texts(others));
  return absl::NotFoundError(why);
}

absl::StatusOr<std::vector<std::string>> NewestOfSessions(const std::vector<manifestpb::Snapshot>& snapshots,
                                                          const std::string& pattern, const HostIdentity& here) {
  const auto session = [](const manifestpb::Snapshot& one) -> const std::string& { return one.session(); };
  STILL_ASSIGN_OR_RETURN(const std::vector<size_t> fits, FitsOnHost(snapshots, pattern, session, here));
  std::map<std::pair<std::string, std::string>, std::string> newest;  // By host and session.
  for (size_t i : fits) newest[{store::HostText(snapshots[i]), snapshots[i].session()}] = snapshots[i].id();
  std::vector<std::string> ids;
  ids.reserve(newest.size());
  for (auto& [whose, id] : newest) ids.push_back(std::move(id));
  return ids;
}

absl::StatusOr<std::vector<manifestpb::Snapshot>> ChooseSnapshots(store::Repository& repository,
                                                                  const std::vector<std::string>& words,
                                                                  const HostIdentity& here) {
  std::vector<manifestpb::Snapshot> chosen;
  std::set<std::string> ids;
  for (const std::string& word : words) {
    if (!IsPattern(word)) {
      STILL_ASSIGN_OR_RETURN(manifestpb::Snapshot snapshot, repository.FindSnapshot(word));
      if (ids.insert(snapshot.id()).second) chosen.push_back(std::move(snapshot));
      continue;
    }
    STILL_ASSIGN_OR_RETURN(std::vector<manifestpb::Snapshot> all, repository.ListSnapshots());
    const auto name = [](const manifestpb::Snapshot& one) -> const std::string& { return one.name(); };
    STILL_ASSIGN_OR_RETURN(const std::vector<size_t> fits, FitsOnHost(all, word, name, here));
    for (size_t i : fits) {
      if (ids.insert(all[i].id()).second) chosen.push_back(std::move(all[i]));
    }
  }
  return chosen;
}

}  // namespace still::cli
