#include "base/log.h"
#include "session/hypervisor/hypervisor.h"

namespace still::session {

absl::Status PausedVm::Resume() {
  if (resume_ == nullptr) return absl::OkStatus();
  STILL_RETURN_IF_ERROR(resume_());
  resume_ = nullptr;
  return absl::OkStatus();
}

PausedVm::~PausedVm() {
  if (resume_ == nullptr) return;
  absl::Status status = resume_();
  if (status.ok()) {
    LogWarning("a paused VM was resumed by its guard");
  } else {
    LogError("a paused VM could not be resumed by its guard", {{"error", status.ToString()}});
  }
}

}  // namespace still::session
