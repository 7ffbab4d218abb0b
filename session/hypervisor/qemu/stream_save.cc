#include "session/hypervisor/qemu/stream_save.h"

#include <algorithm>
#include <utility>

#include "base/log.h"
#include "session/hypervisor/qemu/ram_priming.h"

namespace still::session {
namespace {

using nlohmann::json;

// No throttle: as long as the stream lasts, the guest waits for pages that are not yet in it.
constexpr uint64_t kNoBandwidthLimit = uint64_t{1} << 40;
constexpr absl::Duration kRelayTick = absl::Milliseconds(50);

}  // namespace

absl::StatusOr<std::unique_ptr<StreamSave>> StreamSave::Prepare(QemuMachine& machine, QemuMigration& migration,
                                                                const CaptureOptions& options, bool background,
                                                                OwnedFd sink) {
  STILL_RETURN_IF_ERROR(SetMigrationCapabilities(
      *machine.qmp, {{"background-snapshot", background}, {"x-ignore-shared", false}}, machine.command_deadline));
  STILL_RETURN_IF_ERROR(
      machine.qmp->Run("migrate-set-parameters", {{"max-bandwidth", kNoBandwidthLimit}}, machine.command_deadline));
  STILL_ASSIGN_OR_RETURN(
      std::unique_ptr<MemoryRelay> relay,
      MemoryRelay::Start(std::move(sink), {.when_lost = background ? MemoryRelay::WhenReaderIsLost::kReadOn
                                                                   : MemoryRelay::WhenReaderIsLost::kClose,
                                           .stall_limit = options.memory_stall_limit}));
  // QEMU holds this end alone from here on: its end is the end of the stream.
  OwnedFd source = relay->TakeSource();
  STILL_RETURN_IF_ERROR(migration.Pass(source.get()));
  if (background) LogPriming(PrimeRam(machine.pid, machine.memory_bytes));
  return std::unique_ptr<StreamSave>(new StreamSave(machine, migration, background, std::move(relay)));
}

// The relay watches the reader, this watches QEMU.
absl::Status StreamSave::Await(absl::Duration stall_limit, const PauseBudget* budget) {
  relay_->SetStallLimit(stall_limit);
  auto check = [&]() -> absl::Status {
    STILL_RETURN_IF_ERROR(relay_->status());
    if (budget == nullptr || budget->Left().ok()) return absl::OkStatus();
    relay_->Cancel();
    return budget->Explain(absl::DeadlineExceededError("the memory takes longer to be written"));
  };
  // A hypervisor that writes nothing, though its reader would take it, is only short of processor time for a while.
  STILL_RETURN_IF_ERROR(
      migration_.AwaitCompletion({.progress = [this] { return relay_->bytes_read(); },
                                  .silence_limit = std::max(2 * stall_limit, machine_.command_deadline),
                                  .check = check,
                                  .on_silence = [this] { relay_->Cancel(); }}));
  // QEMU is done, the reader may not be: what it wrote last is still on its way.
  while (!relay_->WaitForEnd(kRelayTick)) STILL_RETURN_IF_ERROR(relay_->status());
  return relay_->status();
}

// In the background it must come to its own end (memory_relay.h says why), which takes as long as QEMU needs to write all
// memory into nothing.
absl::Status StreamSave::End() {
  relay_->Cancel();
  if (!background_) {
    STILL_RETURN_IF_ERROR(machine_.qmp->Run("migrate_cancel", json::object(), machine_.command_deadline));
  }
  return migration_.AwaitEnd([this] { return relay_->bytes_read(); });
}

}  // namespace still::session
