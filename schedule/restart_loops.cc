#include "schedule/restart_loops.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace still::schedule {
namespace {

constexpr absl::string_view kResetsPrefix = "resets/";

}  // namespace

void RestartLoops::Load(const std::map<std::string, std::string>& remembered) {
  marks_.clear();
  for (auto row = remembered.lower_bound(std::string(kResetsPrefix)); row != remembered.end(); ++row) {
    if (!absl::StartsWith(row->first, kResetsPrefix)) break;
    const std::pair<std::string, std::string> words = absl::StrSplit(row->second, absl::MaxSplits(' ', 1));
    int64_t seconds = 0;
    Mark mark;
    if (!absl::SimpleAtoi(words.first, &seconds) || !absl::SimpleAtoi(words.second, &mark.resets)) continue;
    mark.since = absl::FromUnixSeconds(seconds);
    marks_[row->first.substr(kResetsPrefix.size())] = mark;
  }
}

RestartLoops::Verdict RestartLoops::Look(const std::string& session, uint32_t resets, absl::Time now) {
  auto known = marks_.find(session);
  // One that was started again counts anew.
  if (known == marks_.end() || resets < known->second.resets) {
    Put(session, {.since = now, .resets = resets});
    return Verdict::kUnknown;
  }
  // A clock that was set back must not make this window a long one.
  const Mark mark{.since = std::min(known->second.since, now), .resets = known->second.resets};
  const double windows = std::max(1.0, absl::FDivDuration(now - mark.since, kWindow));
  const bool loops = resets - mark.resets > kMostWithin * windows;
  if (now - mark.since >= kWindow) {
    Put(session, {.since = now, .resets = resets});
    return loops ? Verdict::kLoops : Verdict::kCalm;
  }
  known->second = mark;
  return loops ? Verdict::kLoops : Verdict::kUnknown;
}

void RestartLoops::Put(const std::string& session, const Mark& mark) {
  const auto [at, added] = marks_.try_emplace(session, mark);
  // Of most machines there is nothing to write down: they are never reset.
  if (added ? mark.resets > 0 : mark.resets != at->second.resets) {
    unsaved_[absl::StrCat(kResetsPrefix, session)] = absl::StrCat(absl::ToUnixSeconds(mark.since), " ", mark.resets);
  }
  at->second = mark;
}

void RestartLoops::KeepOnly(const std::function<bool(const std::string& session)>& there) {
  for (auto at = marks_.begin(); at != marks_.end();) {
    if (there(at->first)) {
      ++at;
      continue;
    }
    unsaved_[absl::StrCat(kResetsPrefix, at->first)] = "";
    at = marks_.erase(at);
  }
}

}  // namespace still::schedule
