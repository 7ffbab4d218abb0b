// The mount table's names are chosen by whoever may mount: the parser and the plan must survive any text.
#include <cstddef>
#include <cstdint>

#include "base/check.h"
#include "guest-agent/freeze_plan.h"
#include "guest-agent/mount_table.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace still::agent;
  MountSurvey survey;
  auto mounts = ParseMountTable({reinterpret_cast<const char*>(data), size});
  if (!mounts.ok()) return 0;
  survey.mounts = *std::move(mounts);
  // Any dependency, also circles.
  for (const MountEntry& mount : survey.mounts) {
    survey.lies_on[mount.device].insert({mount.device.minor, mount.device.major});
    survey.lies_on[mount.device].insert({mount.device.major, mount.device.minor / 2});
  }
  auto plan = MakeFreezePlan(survey, {});
  STILL_CHECK(plan.ok());
  // Every mount is accounted for exactly once.
  size_t accounted = plan->skipped.size();
  for (const PlannedFileSystem& fs : plan->file_systems) {
    STILL_CHECK(!fs.mounts.empty());
    accounted += fs.mounts.size();
  }
  STILL_CHECK(accounted == survey.mounts.size());
  return 0;
}
