// What a FakeVm and its captures share. Only for fake_vm*.cc.
#pragma once

#include <deque>
#include <map>
#include <set>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "tests/support/fake_vm.h"
#include "tests/support/nbd_server.h"

namespace still::testing {

struct FakeVm::State {
  // Logs the call, runs its action, and gives the error that it is to fail with. A crashed VM answers UNAVAILABLE.
  absl::Status Enter(const std::string& call) ABSL_LOCKS_EXCLUDED(mutex);
  absl::Status ResumeVcpus() ABSL_LOCKS_EXCLUDED(mutex);
  void End(ProcessExit how, bool by_guest) ABSL_LOCKS_EXCLUDED(mutex);

  struct Disk {
    std::string name;
    std::string content;
    bool read_only = false;
    std::map<std::string, std::set<uint64_t>> bitmaps;  // Blocks of NbdExport::kDirtyBlock written since each began.
    uint64_t fail_reads_from = UINT64_MAX;
    uint64_t hang_reads_from = UINT64_MAX;
  };
  Disk* FindDisk(const std::string& name) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);

  std::string directory;
  session::Capabilities capabilities;
  session::VmDescription description;
  std::string device_state;

  mutable absl::Mutex mutex;
  std::string memory ABSL_GUARDED_BY(mutex);
  std::vector<Disk> disks ABSL_GUARDED_BY(mutex);
  bool running ABSL_GUARDED_BY(mutex) = true;
  bool ended ABSL_GUARDED_BY(mutex) = false;
  bool guest_shut_down ABSL_GUARDED_BY(mutex) = false;
  ProcessExit exit ABSL_GUARDED_BY(mutex);
  bool capture_active ABSL_GUARDED_BY(mutex) = false;
  uint64_t next_bitmap ABSL_GUARDED_BY(mutex) = 1;
  std::map<std::string, bool> links ABSL_GUARDED_BY(mutex);
  std::vector<std::string> calls ABSL_GUARDED_BY(mutex);
  std::map<std::string, std::deque<absl::Status>> failures ABSL_GUARDED_BY(mutex);
  std::map<std::string, std::function<void()>> actions ABSL_GUARDED_BY(mutex);
  uint64_t stall_memory_after ABSL_GUARDED_BY(mutex) = UINT64_MAX;
  uint64_t break_memory_after ABSL_GUARDED_BY(mutex) = UINT64_MAX;
};

absl::StatusOr<std::unique_ptr<session::VmCapture>> PrepareFakeCapture(std::shared_ptr<FakeVm::State> state,
                                                                       const session::CaptureOptions& options,
                                                                       OwnedFd memory_sink);

}  // namespace still::testing
