// QemuMemory: QEMU's main memory as the memory engine needs it: where it lies, and a userfaultfd of QEMU's address space.
//
// Both come from the preloaded library (session/vsock/device/preload_memory.cc), which makes the descriptor before QEMU's
// main() and sees QEMU map its memory. QEMU is told that its memory is a file that it shares, so that its migration leaves it
// out; the library maps something better in its place:
//
//   a new machine              anonymous memory: the kernel uses large pages for it
//   over a hot image           the image, privately: other machines start from it too
//   over an image of its own   the image itself
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <utility>

#include "base/fd.h"
#include "base/process.h"
#include "base/status.h"
#include "session/hypervisor/vm_config.h"
#include "session/memory/process_memory.h"

namespace still::session {

struct QemuMemory {
  OwnedFd userfaultfd;  // Negotiated.
  MemoryRange range;
  std::string program;  // still-memory
};

// How a QEMU that is being started hands its memory over.
class MemoryHandover {
 public:
  // No engine: reason() says why, and nothing is added to QEMU's start.
  explicit MemoryHandover(std::string reason) : reason_(std::move(reason)) {}
  // `saved_ram`: what QEMU is to map of an incoming state, else -1.
  static MemoryHandover Prepare(const VmConfig& config, int saved_ram);

  bool wanted() const { return reason_.empty(); }
  const std::string& reason() const { return reason_; }
  // The file that QEMU takes for its memory; only when wanted().
  int ram() const { return ram_; }
  // Borrowed until the process has started.
  void AddTo(ProcessOptions& process) const;
  // QEMU has its ends.
  void HandedOver();
  // QEMU answers QMP, so it has mapped its memory: whether the library has seen that. Before anything is loaded into it.
  // FAILED_PRECONDITION: the library is not there, and QEMU would write into a hot image that others start from.
  absl::Status CheckMapping();
  // What the library has told, and whether the engine can work with it. Once, after CheckMapping.
  absl::StatusOr<QemuMemory> Take(pid_t pid);

 private:
  absl::Status Hear();

  std::string reason_;
  std::string library_;
  std::string program_;
  uint64_t memory_bytes_ = 0;
  char kind_ = 0;
  OwnedFd own_ram_;  // Of a new machine.
  int ram_ = -1;
  OwnedFd theirs_;
  OwnedFd ours_;
  absl::Status heard_;  // Why the library's words are not all there.
  OwnedFd userfaultfd_;
  uint64_t address_ = 0;
  uint64_t mapped_bytes_ = 0;
};

}  // namespace still::session
