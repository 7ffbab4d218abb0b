// How a scheduler goes about its work: the limits that it keeps to, and how long it waits before it tells.
#pragma once

#include "absl/time/time.h"

namespace still::schedule {

// Whoever takes turns all the time takes one every few seconds. Without one for so long, it does not work.
inline constexpr absl::Duration kLongestTurn = absl::Minutes(5);

struct SchedulerOptions {
  int max_running = 2;
  // A run that could have begun this long ago was missed; later ones were only busy waiting.
  absl::Duration tolerance = absl::Minutes(5);
  absl::Duration first_retry_after = absl::Minutes(1);
  // While something runs, its row is looked at this often.
  absl::Duration poll = absl::Milliseconds(500);
  // Schedules and sessions are looked at this often, whatever else turns are taken for: what drops out is told by then.
  absl::Duration reload_every = absl::Seconds(10);
  // Turns that fail for so long are told.
  absl::Duration failing_after = absl::Seconds(20);
  // A name or pattern that fits nothing for so long is told.
  absl::Duration unmatched_after = absl::Hours(1);
  // It takes turns all the time: whoever looks and finds that there were none for kLongestTurn tells it.
  bool daemon = false;
};

}  // namespace still::schedule
