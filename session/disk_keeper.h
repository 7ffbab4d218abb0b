// DiskKeeper: looks after the disks of a lazily restored session until they need nothing from outside any more.
//
// A read that the disk server cannot answer holds the guest. The keeper then starts the server again (its repository may
// be back, or repaired) and lets the guest go on, again and again, less and less often; between two tries no server runs,
// so that the repository can be repaired. It says meanwhile what could not be read; hydrates when asked to; and ends the
// server when every disk is complete. Thread-safe.
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

class DiskKeeper {
 public:
  // `vm` has lazy disks and outlives the keeper. `source` names the disks and what they come from, for people.
  DiskKeeper(Vm& vm, std::unique_ptr<DiskServer> server, std::string source);
  ~DiskKeeper();

  // From now on, until the disks are complete.
  void Hydrate(uint64_t bytes_per_second);
  // Why the guest is held, or hydration is: what cannot be read (the range, once the server has said it), and why the
  // server does not serve if it does not. Empty when all is well.
  std::string trouble() const;

 private:
  // Something that is tried again, less and less often.
  struct Retry {
    absl::Duration next = absl::ZeroDuration();  // Clock::Monotonic().
    absl::Duration delay = absl::ZeroDuration();
    bool Due() const;
    void Failed();
  };

  void Keep();
  // True when nothing is left to do.
  bool Tend();
  void LetGoOn();
  void ContinueHydration(LazyDisks& disks, uint64_t bytes_per_second);
  // `why` is about the server; empty when only a read has failed.
  void SetTrouble(absl::string_view what_is_held, absl::string_view why);
  void EndTrouble();

  Vm& vm_;
  const std::string source_;
  std::unique_ptr<DiskServer> server_;  // Of the keeper's thread, once it runs.
  Retry go_on_;
  Retry hydrate_;
  mutable absl::Mutex mutex_;
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;
  bool hydration_wanted_ ABSL_GUARDED_BY(mutex_) = false;
  bool hydration_asked_ ABSL_GUARDED_BY(mutex_) = false;  // Since it was last begun.
  uint64_t bytes_per_second_ ABSL_GUARDED_BY(mutex_) = 0;
  std::string trouble_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

}  // namespace still::session
