// EngineSave: the memory by the memory engine, the device state alone by QEMU's migration, into a file in memory.
//
// QEMU takes its main memory for shared (x-ignore-shared leaves it out), and protects what else there is itself: the
// firmware and other small blocks (background-snapshot). Needs QemuMachine::memory.
#pragma once

#include <memory>
#include <string>

#include "base/fd.h"
#include "base/status.h"
#include "session/hypervisor/hypervisor.h"
#include "session/hypervisor/qemu/memory_save.h"
#include "session/memory/memory_engine.h"

namespace still::session {

class EngineSave final : public MemorySave {
 public:
  // Blocks until the memory is armed: some 10 ms a GiB of large pages. On an error nothing is protected, nothing was written
  // into `sink`, and another way can be taken.
  static absl::StatusOr<std::unique_ptr<EngineSave>> Prepare(QemuMachine& machine, QemuMigration& migration,
                                                             const CaptureOptions& options, const OwnedFd& sink);
  ~EngineSave() override { Close(false); }

  const char* method() const override { return "engine"; }
  absl::Status LastRound() override { return engine_->Round(machine_.command_deadline); }
  absl::Status Protect(absl::Duration left) override;
  absl::Status Resumed(absl::Time when) override { return engine_->Save(when, machine_.command_deadline); }
  absl::Status Await(absl::Duration stall_limit, const PauseBudget* budget) override;
  absl::Status End() override;
  void Cancel() override { engine_->Cancel(); }
  void Close(bool committed) override;
  uint64_t bytes() const override { return engine_->bytes_written(); }
  void AddTo(PauseReport& report) const override;

 private:
  EngineSave(QemuMachine& machine, QemuMigration& migration, const CaptureOptions& options, OwnedFd device_state,
             std::shared_ptr<MemoryEngine> engine);
  absl::Status Arm(const CaptureOptions& options, const OwnedFd& sink);
  void EndStream();
  uint64_t device_state_bytes() const;

  QemuMachine& machine_;
  QemuMigration& migration_;
  const OwnedFd device_state_;
  OwnedFd sink_;
  const std::shared_ptr<MemoryEngine> engine_;  // Shared with the machine, where that tracks its memory.
  std::string point_;                           // From here on memory is tracked; empty: not by this capture.
  std::string full_reason_;                     // Why it is no increment, with a point.
  bool begun_ = false;  // What was written since the point before is not known any more, unless all goes well.
  bool whole_ = false;
  bool closed_ = false;
};

}  // namespace still::session
