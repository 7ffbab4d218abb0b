#include "tools/still/each_session.h"

#include <algorithm>
#include <atomic>
#include <iostream>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tools/still/choose.h"

namespace still::cli {

ChosenSessions ChooseSessions(const session::SessionRegistry& sessions, const std::vector<std::string>& words,
                              bool beginnings) {
  ChosenSessions chosen;
  absl::StatusOr<std::vector<session::SessionEntry>> entries = sessions.List();
  if (!entries.ok()) {
    chosen.error = entries.status();
    return chosen;
  }
  std::vector<std::string> all;
  all.reserve(entries->size());
  for (const session::SessionEntry& entry : *entries) all.push_back(entry.name);
  const auto resolve = [&](const std::string& word) -> absl::StatusOr<std::string> {
    if (beginnings) return sessions.Resolve(word);
    return word;
  };
  for (const std::string& word : words) {
    absl::StatusOr<std::vector<std::string>> meant = ChooseNames("session", {word}, all, resolve);
    chosen.error = WorstError(chosen.error, meant.status());
    if (!meant.ok()) continue;
    for (std::string& name : *meant) {
      const bool known = std::find(chosen.names.begin(), chosen.names.end(), name) != chosen.names.end();
      if (!known) chosen.names.push_back(std::move(name));
    }
  }
  return chosen;
}

absl::Status WorstError(const absl::Status& all, const absl::Status& next) {
  if (all.ok() || next.ok()) return all.ok() ? next : all;
  const absl::Status& worse = ExitCode(next) > ExitCode(all) ? next : all;
  return absl::Status(worse.code(), absl::StrCat(all.message(), "; ", next.message()));
}

absl::Status WithEachSession(Context& context, const std::vector<std::string>& words, bool beginnings, size_t at_once,
                             const OnSession& action) {
  const ChosenSessions chosen = ChooseSessions(context.sessions(), words, beginnings);
  const std::vector<std::string>& names = chosen.names;
  std::vector<absl::StatusOr<Done>> results(names.size(), absl::CancelledError("not reached"));
  std::atomic<size_t> next = 0;
  auto work = [&] {
    for (size_t i; (i = next++) < names.size();) results[i] = action(names[i]);
  };
  std::vector<std::thread> threads;
  for (size_t i = 1; i < std::min(at_once, names.size()); ++i) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
  context.ProgressDone();

  const bool several = words.size() > 1 || IsPattern(words[0]);
  nlohmann::json list = nlohmann::json::array();
  std::string sentences;
  absl::Status error = chosen.error;
  for (size_t i = 0; i < results.size(); ++i) {
    if (!results[i].ok()) {
      error = WorstError(error, several ? Annotate(results[i].status(), names[i]) : results[i].status());
      continue;
    }
    list.push_back(std::move(results[i]->json));
    absl::StrAppend(&sentences, results[i]->sentence, "\n");
  }
  if (several || !list.empty()) {
    context.Print(several ? list : list[0], [&] { std::cout << sentences; });
  }
  return error;
}

}  // namespace still::cli
