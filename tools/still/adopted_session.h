// A session for the length of one snapshot, over a VMM that runs already and is not ours (hypervisor/process).
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/status.h"
#include "tools/still/context.h"

namespace still::cli {

struct AdoptArguments {
  std::string name;  // Of the session; must not be taken.
  int64_t pid = 0;
  std::vector<std::string> disks;  // As for `still run`.
};

// Adopts the process as session `name`, calls `work`, and lets the process go again, whatever `work` says. The process
// is never ended.
absl::Status WithAdoptedProcess(Context& context, const AdoptArguments& arguments,
                                const std::function<absl::Status()>& work);

}  // namespace still::cli
