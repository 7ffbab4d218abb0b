// VmKeeper: keeps a session's guest going, as long as the session lives.
//
// - A disk that could not be read or written holds the guest (no space left, a disk server that does not answer). The
//   keeper says which and why, and has it tried again, again and again, less and less often.
// - A machine that is paused though no capture is at it, and that nobody asked to pause, is resumed, and it is said.
// - What a capture could not give back, because the hypervisor did not answer, is given back.
// - Of a lazily restored session it looks after the disk server too: started anew before each try (its repository may be
//   back, or repaired); between two tries no server runs, so that the repository can be repaired. It hydrates when asked
//   to, and ends the server when every disk is complete.
//
// Thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/status.h"
#include "session/disk_server.h"
#include "session/hypervisor/hypervisor.h"

namespace still::session {

class VmKeeper {
 public:
  // `vm` outlives the keeper. `server`: of lazily restored disks, else null; `source` names them and what they come from,
  // for people.
  VmKeeper(Vm& vm, std::unique_ptr<DiskServer> server, std::string source);
  ~VmKeeper();

  // From now on the machine is to run. (One that was restored is paused at first.)
  void Watch();
  // From now on, until the disks are complete. No-op without a server.
  void Hydrate(uint64_t bytes_per_second);
  // Why the guest is held, or hydration is: which disk could not be read or written (the range, once a server has said
  // it), and why the server does not serve if it does not. Empty when all is well.
  std::string trouble() const;
  // That the machine was found paused within the last hour, when, and what became of it. Or empty.
  std::string found_paused() const;

 private:
  // Something that is tried again, less and less often.
  struct Retry {
    absl::Duration next = absl::ZeroDuration();  // Clock::Monotonic().
    absl::Duration delay = absl::ZeroDuration();
    bool Due() const;
    void Failed();
  };

  void Keep();
  void Tend();
  void TendHeld(const Standstill& held);
  void TendPaused(const Standstill& paused);
  void TendDisks();
  void NoteThatItRuns();
  void ContinueHydration(LazyDisks& disks, uint64_t bytes_per_second);
  // `why` is about the server; empty when only a read has failed.
  void SetServerTrouble(absl::string_view what_is_held, absl::string_view why);
  void SetDiskTrouble(const Standstill& held, absl::string_view why_not_resumed);
  void SetTrouble(std::string trouble);
  void EndTrouble();

  Vm& vm_;
  const std::string source_;
  std::unique_ptr<DiskServer> server_;  // Of the keeper's thread, once it runs. Null: no disk needs it (any more).
  Retry go_on_;
  Retry hydrate_;
  absl::Duration paused_since_ = absl::InfiniteDuration();  // Clock::Monotonic().
  mutable absl::Mutex mutex_;
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;
  bool watching_ ABSL_GUARDED_BY(mutex_) = false;
  bool hydration_wanted_ ABSL_GUARDED_BY(mutex_) = false;
  bool hydration_asked_ ABSL_GUARDED_BY(mutex_) = false;  // Since it was last begun.
  uint64_t bytes_per_second_ ABSL_GUARDED_BY(mutex_) = 0;
  std::string trouble_ ABSL_GUARDED_BY(mutex_);
  std::string found_paused_ ABSL_GUARDED_BY(mutex_);
  absl::Time found_paused_at_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
  std::thread thread_;
};

}  // namespace still::session
