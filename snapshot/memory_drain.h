// Takes the memory stream of a capture apart: pages into the image `ram`, the rest into the device state. Two threads:
// one takes bytes from the hypervisor at full speed (the guest waits for them), one parses and feeds the repository.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/fd.h"
#include "base/status.h"
#include "session/hypervisor/hypervisor.h"
#include "snapshot/spilling_pipe.h"
#include "store/image/image_writer.h"

namespace still::snapshot {

struct DrainedMemory {
  uint64_t ram_bytes = 0;  // Size of the guest's memory.
  uint64_t bytes_read = 0;
  uint64_t bytes_spilled = 0;
  std::string device_state;
};

// The guest waits for its memory to be saved, so a stream that is silent for so long has lost whoever feeds it.
inline constexpr absl::Duration kMemorySilence = absl::Minutes(3);

class MemoryDrain {
 public:
  // Makes the image once the size of the memory is known.
  using OpenImage = std::function<absl::StatusOr<std::unique_ptr<store::ImageWriter>>(uint64_t size)>;

  // Starts at once on `stream`, a connected socket. `spill_directory`: see SpillingPipe. `patience`: how long the stream
  // may be silent, from LetGo() on; before, the capture's events tell whether the session lives.
  MemoryDrain(OwnedFd stream, std::string format, std::string spill_directory, OpenImage open_image,
              absl::Duration patience = kMemorySilence);
  // Stops and joins; what was not finished is dropped.
  ~MemoryDrain();

  // The guest is thawed (or will be without us): what was read is worked on from now on. Before, only the bytes are
  // taken, because the thaw needs the processors. Thread-safe.
  void LetGo() {
    let_go_ = true;
    pipe_.LetGo();
  }
  // Blocks until everything is in the image and finished. Once, after LetGo(). DEADLINE_EXCEEDED: the stream has been
  // silent for too long.
  absl::StatusOr<DrainedMemory> Finish();
  // Makes Finish fail soon. Thread-safe.
  void Cancel();
  uint64_t bytes_done() const { return bytes_parsed_; }
  uint64_t bytes_taken() const { return bytes_read_; }
  // What failed on our side (the repository, the spill file) and so made the stream break; OK when nothing did.
  // Thread-safe.
  absl::Status own_failure() const;

 private:
  void ReadLoop();
  absl::Status AwaitBytes();
  absl::StatusOr<size_t> ReadPiece(std::string& piece);
  absl::Status Parse();
  void FailBecauseOfUs(const absl::Status& status);

  OwnedFd stream_;
  const std::string format_;
  const OpenImage open_image_;
  const absl::Duration patience_;
  SpillingPipe pipe_;
  std::atomic<bool> let_go_{false};
  std::atomic<uint64_t> bytes_read_{0};
  std::atomic<uint64_t> bytes_parsed_{0};
  DrainedMemory result_;
  absl::Status status_;
  mutable absl::Mutex mutex_;
  absl::Status own_failure_ ABSL_GUARDED_BY(mutex_);
  std::thread reader_;
  std::thread parser_;
};

}  // namespace still::snapshot
