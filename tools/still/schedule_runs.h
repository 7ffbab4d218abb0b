// Commands about runs of schedules.
#pragma once

#include <CLI/CLI.hpp>

#include "tools/still/context.h"

namespace still::cli {

// schedule run-now, schedule history.
void AddScheduleRuns(CLI::App& group, Context& context);

}  // namespace still::cli
