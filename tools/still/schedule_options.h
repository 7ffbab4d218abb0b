// The options of `still schedule add` and `edit`: each sets one field of a schedule, and only if it was given.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "proto/schedule.pb.h"

namespace still::cli {

// Of a new schedule.
inline constexpr uint32_t kDefaultRetries = 3;

class ScheduleOptions {
 public:
  void AddTo(CLI::App& command);
  // INVALID_ARGUMENT names the option.
  absl::Status Apply(::stillpoint::schedule::v1::Schedule& schedule) const;

 private:
  using Setter = std::function<absl::Status(::stillpoint::schedule::v1::Schedule&, const std::vector<std::string>&)>;
  struct Entry {
    CLI::Option* option;
    std::shared_ptr<std::vector<std::string>> values;
    Setter set;
  };
  CLI::Option* Add(CLI::App& command, const std::string& flag, const std::string& help, Setter set);
  void AddRest(CLI::App& command);
  std::vector<Entry> entries_;
};

}  // namespace still::cli
