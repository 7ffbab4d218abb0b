#include "schedule/session_watch.h"

#include <utility>
#include <vector>

#include "base/log.h"
#include "session/control/describe_all.h"

namespace still::schedule {
namespace {

// A session answers at once or hangs.
constexpr absl::Duration kAnswerWithin = absl::Seconds(5);

}  // namespace

SessionWatch::~SessionWatch() {
  {
    absl::MutexLock lock(&mutex_);
    ending_ = true;
  }
  if (thread_.joinable()) thread_.join();
}

void SessionWatch::AskOnce() {
  absl::StatusOr<std::vector<session::SessionEntry>> entries = registry_.List();
  if (!entries.ok()) {
    LogWarning("sessions are not asked how they are", {{"error", entries.status().ToString()}});
    return;
  }
  std::vector<std::string> names;
  for (const session::SessionEntry& entry : *entries) {
    if (entry.ready) names.push_back(entry.name);
  }
  const auto answers = session::DescribeAll(registry_, names, kAnswerWithin);
  absl::MutexLock lock(&mutex_);
  std::map<std::string, Told> told;
  for (size_t i = 0; i < names.size(); ++i) {
    // Of one that does not answer nothing new is known.
    if (!answers[i].ok()) {
      if (auto known = told_.find(names[i]); known != told_.end()) told.insert(*known);
      continue;
    }
    const bool paused = answers[i]->state() == sessionpb::DescribeResponse::PAUSED;
    told[names[i]] = {.held = paused ? answers[i]->disk_trouble() : "", .resets = answers[i]->reboots()};
  }
  told_ = std::move(told);
}

void SessionWatch::Start(absl::Duration every) {
  if (thread_.joinable()) return;
  thread_ = std::thread([this, every] {
    for (;;) {
      AskOnce();
      absl::MutexLock lock(&mutex_);
      if (mutex_.AwaitWithTimeout(absl::Condition(&ending_), every)) return;
    }
  });
}

std::map<std::string, SessionWatch::Told> SessionWatch::LastTold() const {
  absl::MutexLock lock(&mutex_);
  return told_;
}

}  // namespace still::schedule
