// Reads what a capture offers into plain files, without any of the product's own code on the disk side.
#pragma once

#include <string>
#include <thread>

#include "base/fd.h"
#include "base/status.h"
#include "session/hypervisor/hypervisor.h"
#include "session/hypervisor/memory_stream_receiver.h"
#include "tests/contract/hypervisor/vm_under_test.h"

namespace still::testing {

// Splits a memory stream, of any way, into a memfd and a device-state file, in a thread of its own.
class MemoryReader : public session::MemoryStreamReceiver {
 public:
  // Reads from `stream` until its end. `base`: the memory that an increment builds on.
  explicit MemoryReader(OwnedFd stream, std::string base = {});
  ~MemoryReader() override;
  // Waits for the end of the stream.
  absl::Status Finish();
  // After Finish.
  OwnedFd TakeRam() { return std::move(ram_); }
  OwnedFd TakeDeviceState() { return std::move(device_state_); }
  uint64_t memory_bytes() const { return memory_bytes_; }
  bool increment() const { return increment_; }
  uint64_t bytes_of_pages() const { return bytes_of_pages_; }
  // All of it.
  absl::StatusOr<std::string> Memory() const;
  absl::StatusOr<uint32_t> Word(uint64_t address) const;

  absl::Status OnMemorySize(uint64_t size) override;
  absl::Status OnIncrement() override;
  absl::Status OnPages(uint64_t offset, absl::string_view data) override;
  absl::Status OnZeroPage(uint64_t offset) override;
  absl::Status OnDeviceState(absl::string_view data) override;

 private:
  OwnedFd stream_;
  OwnedFd ram_;
  OwnedFd device_state_;
  const std::string base_;
  uint64_t memory_bytes_ = 0;
  uint64_t bytes_of_pages_ = 0;
  bool increment_ = false;
  absl::Status result_ = absl::UnknownError("not finished");
  std::thread thread_;
};

// The whole export, as bytes.
absl::StatusOr<std::string> ReadExport(const session::PinnedDiskExport& exported);
struct DirtyRange {
  uint64_t offset;
  uint64_t size;
};
// What the export's dirty context reports as changed.
absl::StatusOr<std::vector<DirtyRange>> ReadDirtyRanges(const session::PinnedDiskExport& exported);

}  // namespace still::testing
