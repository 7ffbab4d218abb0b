// Stands between a QmpClient and a QEMU and passes everything on, commands from a chosen one on only when it is told to:
// a QEMU that executes late.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/fd.h"
#include "base/status.h"

namespace still::testing {

class QmpProxy {
 public:
  // `qemu`: connected to it.
  static absl::StatusOr<std::unique_ptr<QmpProxy>> Start(OwnedFd qemu);
  ~QmpProxy();

  OwnedFd TakeClient() { return std::move(client_); }
  // The command after the next `commands` ones and all that follow wait, until LetGo.
  void HoldAfter(uint64_t commands);
  // The next one of this name and all that follow wait, until LetGo.
  void HoldAt(const std::string& command);
  void LetGo();
  // The first command that waits or has waited; empty when none has.
  std::string held() const;

 private:
  QmpProxy() = default;
  void PassCommands();
  void PassAnswers();
  // Blocks while commands are held.
  void AwaitTurn(const std::string& line);

  OwnedFd client_;  // The client's end, until taken.
  OwnedFd ours_;
  OwnedFd qemu_;
  mutable absl::Mutex mutex_;
  uint64_t seen_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t hold_after_ ABSL_GUARDED_BY(mutex_) = UINT64_MAX;
  std::string hold_at_ ABSL_GUARDED_BY(mutex_);
  std::string held_ ABSL_GUARDED_BY(mutex_);
  std::thread commands_;
  std::thread answers_;
};

}  // namespace still::testing
