// Which schedules a command means, and doing something with each of them.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/status.h"
#include "proto/schedule.pb.h"
#include "tools/still/context.h"
#include "tools/still/schedule_client.h"

namespace still::cli {

// Empty: all. NOT_FOUND.
absl::StatusOr<stillpoint::schedule::v1::ScheduleList> ListSchedules(ScheduleClient& client, const std::string& name);

// The schedules that `words` name, patterns included.
absl::StatusOr<std::vector<std::string>> ChooseSchedules(ScheduleClient& client, const std::vector<std::string>& words);

// As JSON: of one name its object, of more, or a pattern, a list.
nlohmann::json OneOrAll(const std::vector<std::string>& words, nlohmann::json list);

// What is done to each of them, and the sentence about it. What was done before an error is told all the same.
absl::Status WithEachSchedule(
    Context& context, const std::vector<std::string>& words,
    const std::function<absl::Status(ScheduleClient& client, const std::string& name)>& action,
    const std::function<nlohmann::json(const std::string& name)>& json, const char* sentence);

}  // namespace still::cli
