// Waker: ends another thread's poll(2).
//
//   STILL_ASSIGN_OR_RETURN(Waker waker, Waker::Create());
//   waker.Wake();                                     // any thread
//   pollfd fds[] = {{waker.fd(), POLLIN, 0}, ...};    // the thread that waits: readable until Clear()
//
// Several wakes before a Clear() count once. A waker that is never cleared is a stop sign: every waiter sees it.
#pragma once

#include <utility>

#include "absl/time/time.h"
#include "base/fd.h"
#include "base/status.h"

namespace still {

class Waker {
 public:
  static absl::StatusOr<Waker> Create();

  // Thread-safe; also from a signal handler.
  void Wake() const;
  // False: nobody had woken.
  bool Clear() const;
  int fd() const { return event_.get(); }

 private:
  explicit Waker(OwnedFd event) : event_(std::move(event)) {}
  OwnedFd event_;  // eventfd(2), non-blocking.
};

// What poll(2) takes as its time limit to wait until `duration` is over: -1 for ever, 0 not at all. A longer time than
// an int holds (24 days) is cut: a wait may end early for other reasons, too.
int PollTimeout(absl::Duration duration);

}  // namespace still
