// PauseBudget: how long a machine may stand still for one capture, over everything that is done meanwhile.
//
//   PauseBudget budget(absl::Seconds(2));
//   budget.Begin();                                                  // before the first command of the pause
//   STILL_ASSIGN_OR_RETURN(absl::Duration left, budget.Left());      // before each: its deadline
//   if (!status.ok()) return budget.Explain(status);                 // so that people know which limit it was
//
// Not thread-safe.
#pragma once

#include "absl/time/time.h"
#include "base/status.h"

namespace still::session {

class PauseBudget {
 public:
  explicit PauseBudget(absl::Duration length) : length_(length) {}

  void Begin();
  // DEADLINE_EXCEEDED when nothing is left: the next command must not be sent any more.
  absl::StatusOr<absl::Duration> Left() const;
  // What has passed until now does not count, because it was asked for.
  void Forgive() { Begin(); }
  // A deadline that was met inside the pause is the budget's.
  absl::Status Explain(const absl::Status& status) const;

 private:
  const absl::Duration length_;
  absl::Duration end_;  // Clock::Monotonic().
};

}  // namespace still::session
