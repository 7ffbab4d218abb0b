#include "schedule/preview.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"

namespace still::schedule {
namespace {

constexpr size_t kMostRuns = 20'000;

}  // namespace

absl::StatusOr<std::vector<PreviewedSnapshot>> Preview(const Schedule& schedule, const std::string& session,
                                                       const std::vector<snapshot::RetentionCandidate>& existing,
                                                       absl::Time now, absl::Duration length) {
  std::map<std::string, PreviewedSnapshot> all;
  std::vector<snapshot::RetentionCandidate> kept = existing;
  for (const snapshot::RetentionCandidate& one : existing) {
    all[one.id] = {.id = one.id, .point = one.point, .keep = true};
  }
  size_t runs = 0;
  for (auto planned = schedule.timing.Next(now); planned.has_value() && *planned <= now + length;
       planned = schedule.timing.Next(*planned)) {
    if (++runs > kMostRuns) {
      return absl::ResourceExhaustedError(absl::StrCat("more than ", kMostRuns, " runs: look at fewer days"));
    }
    absl::Time point = *planned + schedule.timing.Delay(schedule.name(), session, *planned);
    point = schedule.timing.BlackedOutUntil(point).value_or(point);
    const std::string id = absl::StrCat("future-", runs);
    all[id] = {.point = point, .keep = true};
    kept.push_back({.id = id, .machine = session, .point = point});
    if (!schedule.retention.has_value()) continue;
    STILL_ASSIGN_OR_RETURN(std::vector<snapshot::RetentionVerdict> verdicts,
                           snapshot::DecideRetention(kept, *schedule.retention, point, schedule.timing.zone));
    std::vector<snapshot::RetentionCandidate> left;
    for (size_t i = 0; i < kept.size(); ++i) {
      PreviewedSnapshot& shown = all[kept[i].id];
      shown.reasons = verdicts[i].reasons;
      shown.keep = verdicts[i].keep;
      if (verdicts[i].keep) {
        left.push_back(std::move(kept[i]));
      } else {
        shown.dropped = point;
      }
    }
    kept = std::move(left);
  }
  std::vector<PreviewedSnapshot> timeline;
  timeline.reserve(all.size());
  for (auto& [id, one] : all) timeline.push_back(std::move(one));
  std::sort(timeline.begin(), timeline.end(), [](const auto& a, const auto& b) { return a.point < b.point; });
  return timeline;
}

}  // namespace still::schedule
