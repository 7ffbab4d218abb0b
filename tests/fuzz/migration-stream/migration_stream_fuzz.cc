// The memory stream comes out of a process that a guest may have taken over. Any input: no crash, no overrun, an end.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "session/hypervisor/qemu/migration_stream.h"

namespace {

class Source : public still::session::MigrationStreamSource {
 public:
  explicit Source(absl::string_view bytes) : left_(bytes) {}
  absl::StatusOr<size_t> Read(char* out, size_t size) override {
    // In pieces of changing length: where a read ends must not matter.
    size = std::min({size, left_.size(), size_t{1} + left_.size() % 5000});
    std::memcpy(out, left_.data(), size);
    left_.remove_prefix(size);
    return size;
  }

 private:
  absl::string_view left_;
};

class Receiver : public still::session::MemoryStreamReceiver {
 public:
  absl::Status OnMemorySize(uint64_t size) override {
    if (size_ != 0) __builtin_trap();
    size_ = size;
    return absl::OkStatus();
  }
  absl::Status OnPages(uint64_t offset, absl::string_view data) override {
    if (data.empty() || data.size() % 4096 != 0 || offset % 4096 != 0) __builtin_trap();
    if (offset >= size_ || data.size() > size_ - offset) __builtin_trap();
    return absl::OkStatus();
  }
  absl::Status OnZeroPage(uint64_t offset) override {
    if (offset % 4096 != 0 || offset >= size_) __builtin_trap();
    return absl::OkStatus();
  }
  absl::Status OnDeviceState(absl::string_view data) override {
    total_ += data.size();
    if (total_ > kLimit) __builtin_trap();
    return absl::OkStatus();
  }

  static constexpr uint64_t kLimit = 1 << 20;

 private:
  uint64_t size_ = 0;
  uint64_t total_ = 0;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Source source(absl::string_view(reinterpret_cast<const char*>(data), size));
  Receiver receiver;
  (void)still::session::SplitMigrationStream(
      source, {.max_memory_bytes = 1 << 30, .max_device_state_bytes = Receiver::kLimit, .buffer_bytes = 8 << 10},
      receiver);
  return 0;
}
