#include "session/hypervisor/pause_budget.h"

#include "absl/strings/str_cat.h"
#include "base/clock.h"

namespace still::session {

void PauseBudget::Begin() { end_ = Clock::Real().Monotonic() + length_; }

absl::StatusOr<absl::Duration> PauseBudget::Left() const {
  absl::Duration left = end_ - Clock::Real().Monotonic();
  if (left > absl::ZeroDuration()) return left;
  return absl::DeadlineExceededError("no time is left");
}

absl::Status PauseBudget::Explain(const absl::Status& status) const {
  if (!absl::IsDeadlineExceeded(status)) return status;
  return absl::DeadlineExceededError(absl::StrCat(status.message(), "; the machine may stand still for ",
                                                  absl::FormatDuration(length_), " (--max-pause)"));
}

}  // namespace still::session
