// Daemon: stilld from its start to its end: in charge of the schedules, serving its socket and, if wanted, HTTP, telling
// systemd how it is (sd_notify(3)), and leaving in good order on SIGTERM: workers finish what they have begun.
#pragma once

#include <string>

#include "absl/time/time.h"
#include "base/status.h"
#include "schedule/supervisor.h"

namespace still::daemon {

struct DaemonOptions {
  schedule::SupervisorOptions supervisor;
  // "127.0.0.1:9841": metrics and the status page; empty: off. Only loopback addresses.
  std::string http;
  // How long to wait at the end for runs under way; they go on by themselves afterwards.
  absl::Duration drain = absl::Seconds(60);
};

// Blocks until SIGTERM or SIGINT, which must be blocked in all threads.
absl::Status RunDaemon(const DaemonOptions& options);

}  // namespace still::daemon
