#include "tools/still/schedule_names.h"

#include <algorithm>
#include <iostream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tools/still/choose.h"

namespace still::cli {

absl::StatusOr<stillpoint::schedule::v1::ScheduleList> ListSchedules(ScheduleClient& client, const std::string& name) {
  stillpoint::schedule::v1::ListRequest request;
  request.set_name(name);
  return client.Call(&ScheduleControl::Stub::List, request);
}

absl::StatusOr<std::vector<std::string>> ChooseSchedules(ScheduleClient& client,
                                                         const std::vector<std::string>& words) {
  std::vector<std::string> names;
  if (std::any_of(words.begin(), words.end(), IsPattern)) {
    STILL_ASSIGN_OR_RETURN(stillpoint::schedule::v1::ScheduleList list, ListSchedules(client, ""));
    for (const auto& entry : list.schedules()) names.push_back(entry.schedule().name());
  }
  return ChooseNames("schedule", words, std::move(names),
                     [](const std::string& word) -> absl::StatusOr<std::string> { return word; });
}

nlohmann::json OneOrAll(const std::vector<std::string>& words, nlohmann::json list) {
  return words.size() > 1 || IsPattern(words[0]) ? list : list[0];
}

absl::Status WithEachSchedule(
    Context& context, const std::vector<std::string>& words,
    const std::function<absl::Status(ScheduleClient& client, const std::string& name)>& action,
    const std::function<nlohmann::json(const std::string& name)>& json, const char* sentence) {
  STILL_ASSIGN_OR_RETURN(auto client, ScheduleClient::Connect(context));
  STILL_ASSIGN_OR_RETURN(const std::vector<std::string> names, ChooseSchedules(*client, words));
  nlohmann::json list = nlohmann::json::array();
  std::string sentences;
  absl::Status error;
  for (const std::string& name : names) {
    absl::Status done = action(*client, name);
    error = FirstError(error, done);
    if (!done.ok()) continue;
    list.push_back(json(name));
    absl::StrAppend(&sentences, "schedule ", name, sentence, "\n");
  }
  if (!list.empty()) context.Print(OneOrAll(words, list), [&] { std::cout << sentences; });
  return error;
}

}  // namespace still::cli
