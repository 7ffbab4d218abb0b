// still schedule preview.
#pragma once

#include "tools/still/context.h"

namespace still::cli {

void AddSchedulePreview(CLI::App& group, Context& context);

}  // namespace still::cli
