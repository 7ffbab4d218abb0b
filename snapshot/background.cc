#include "snapshot/background.h"

#include <sys/resource.h>

#include <thread>

namespace still::snapshot {
namespace {

// A third of the weight of a vcpu beside it (sched(7)); more would let a host full of busy guests starve a snapshot.
constexpr int kBackgroundNice = 5;

}  // namespace

void EnterBackground() {
  // On Linux the nice value is the thread's, and 0 means the caller. It can only fail when we are lower already.
  (void)::setpriority(PRIO_PROCESS, 0, kBackgroundNice);
}

absl::Status InBackground(const std::function<absl::Status()>& work) {
  absl::Status status;
  std::thread([&] {
    EnterBackground();
    status = work();
  }).join();
  return status;
}

}  // namespace still::snapshot
