// Stays with one child until it ends: hands on what it writes, and kills it when its time is over.
//
// What ends the watch is the child's own end, never the end of its output: a program that it leaves behind may hold a
// pipe open for ever.
#pragma once

#include <functional>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/process.h"
#include "base/status.h"
#include "base/waker.h"

namespace still {

struct ChildStream {
  int fd = -1;  // Our end, non-blocking (SetNonBlocking); borrowed. -1: none.
  // Gets what there is, in pieces. False: no more of it.
  std::function<bool(absl::string_view)> hear;
};

struct ChildWatchOptions {
  std::vector<ChildStream> streams;
  // When the child gets SIGKILL, on the monotonic clock. Asked before every wait, so it may change with a wake.
  std::function<absl::Duration()> kill_at = [] { return absl::InfiniteDuration(); };
  const Waker* waker = nullptr;  // Null: nobody wakes. Borrowed, cleared here.
  // Kill the process group that the child leads (ProcessOptions::new_session), and not the child alone.
  bool kill_group = false;
};

struct WatchedEnd {
  ProcessExit exit;
  bool killed = false;  // By kill_at.
};

// Blocks until the child has ended; then everything that it had written by then has been heard. A killed child that
// does not end (a system call that hangs) is waited for no longer than `kKilledChildGrace`: DEADLINE_EXCEEDED, and it is reaped in the background.
absl::StatusOr<WatchedEnd> WatchChild(ChildProcess& child, const ChildWatchOptions& options);

inline constexpr absl::Duration kKilledChildGrace = absl::Seconds(5);

}  // namespace still
