// QemuMigration: one outgoing migration of a QEMU, by which a capture saves the device state and, where there is no better
// way, the memory. It hears QEMU's events, so it also knows when the VM stopped and ran again. What is sent, in which order
// and why: docs/qemu.md.
//
// Not thread-safe.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "base/status.h"
#include "session/hypervisor/pause_budget.h"
#include "session/hypervisor/qemu/qemu_machine.h"
#include "session/hypervisor/qemu/qmp_client.h"

namespace still::session {

class QemuMigration {
 public:
  // `commands`: what is sent is added to it.
  QemuMigration(QemuMachine& machine, PauseBudget& budget, std::vector<std::string>& commands);

  // The descriptor that QEMU writes into; QEMU alone holds it from here on. While the VM runs.
  absl::Status Pass(int fd);

  // The VM stands still, by `stop`. What it did before is forgotten.
  void NotePause();
  // One command, in the pause. Before it the VM has been paused, not reset.
  absl::Status Start();
  // Until a background snapshot has protected the memory and the VM runs.
  absl::Status AwaitWriteProtection();
  // Reads what has happened; waits for nothing.
  void Drain();

  struct Wait {
    // Something that grows while QEMU writes.
    std::function<uint64_t()> progress;
    // How long it may not grow.
    absl::Duration silence_limit;
    // Asked every now and then; an error ends the waiting.
    std::function<absl::Status()> check = [] { return absl::OkStatus(); };
    // Called when it has been silent for too long.
    std::function<void()> on_silence = [] {};
  };
  // Until it has ended; an error unless it has completed.
  absl::Status AwaitCompletion(const Wait& wait);
  // Until it has ended, however: for one that nobody needs any more.
  absl::Status AwaitEnd(const std::function<uint64_t()>& progress);
  // What was passed and not used is taken back.
  absl::Status Release();

  bool running() const { return state_ == State::kStarting || state_ == State::kActive; }
  absl::Time stopped_at() const { return stopped_at_; }
  // When the VM ran again: QEMU's time, else now.
  absl::Time resumed_at();

 private:
  enum class State { kNone, kStarting, kActive, kCompleted, kFailed };

  absl::Status ContinueIfProtected();
  absl::Status NextEvent(absl::Duration timeout);
  void Note(const QmpEvent& event);
  // Why QEMU has given it up.
  absl::Status Error();

  QemuMachine& machine_;
  PauseBudget& budget_;
  std::vector<std::string>& commands_;
  QmpSubscription events_;
  State state_ = State::kNone;
  bool passed_ = false;
  uint64_t resets_at_pause_ = 0;
  absl::Time stopped_at_ = absl::InfinitePast();
  absl::Time resumed_at_ = absl::InfinitePast();
};

}  // namespace still::session
