// StreamSave: QEMU's own memory stream, through a relay (memory_relay.h), in the background or while the VM stands still.
#pragma once

#include <memory>

#include "base/fd.h"
#include "base/status.h"
#include "session/hypervisor/hypervisor.h"
#include "session/hypervisor/qemu/memory_relay.h"
#include "session/hypervisor/qemu/memory_save.h"

namespace still::session {

class StreamSave final : public MemorySave {
 public:
  static absl::StatusOr<std::unique_ptr<StreamSave>> Prepare(QemuMachine& machine, QemuMigration& migration,
                                                             const CaptureOptions& options, bool background,
                                                             OwnedFd sink);

  const char* method() const override { return background_ ? "background" : "stopped"; }
  absl::Status Protect(absl::Duration) override { return absl::OkStatus(); }  // QEMU does it itself.
  absl::Status Resumed(absl::Time) override { return absl::OkStatus(); }
  absl::Status Await(absl::Duration stall_limit, const PauseBudget* budget) override;
  absl::Status End() override;
  void Cancel() override { relay_->Cancel(); }
  uint64_t bytes() const override { return relay_->bytes(); }
  // It still has its end of the stream, and will write into it when it goes on.
  std::shared_ptr<MemoryRelay> stream() const override { return relay_; }

 private:
  StreamSave(QemuMachine& machine, QemuMigration& migration, bool background, std::unique_ptr<MemoryRelay> relay)
      : machine_(machine), migration_(migration), background_(background), relay_(std::move(relay)) {}

  QemuMachine& machine_;
  QemuMigration& migration_;
  const bool background_;
  const std::shared_ptr<MemoryRelay> relay_;  // Shared with the machine, once that has to keep the stream open.
};

}  // namespace still::session
