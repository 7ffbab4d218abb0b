// StreamWindow: a window onto a memory stream, filled in big reads and consumed in small steps; and the big-endian
// numbers that the stream is made of. Not thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "base/status.h"
#include "session/hypervisor/qemu/migration_stream.h"

namespace still::session {

// DATA_LOSS that says where.
absl::Status BrokenStream(absl::string_view what, uint64_t at);

uint32_t LoadBigEndian32(const char* at);
std::string BigEndian32(uint32_t value);
std::string BigEndian64(uint64_t value);

class StreamWindow {
 public:
  StreamWindow(MigrationStreamSource& source, size_t buffer_bytes) : source_(source), buffer_(buffer_bytes) {}

  // The next `size` bytes (at most the buffer's), not consumed; valid until a Need for which Has() was false.
  absl::StatusOr<char*> Need(size_t size);
  // True when so much is at hand that Need(size) reads and moves nothing.
  bool Has(size_t size) const { return end_ - begin_ >= size; }
  void Consume(size_t size) {
    begin_ += size;
    consumed_ += size;
  }
  // Since the beginning of the stream.
  uint64_t consumed() const { return consumed_; }
  // Whatever is at hand, at least a byte unless the stream is over.
  absl::StatusOr<absl::string_view> Some();

  // Need and Consume in one. A cut stream is DATA_LOSS.
  absl::StatusOr<uint8_t> U8();
  absl::StatusOr<uint32_t> U32();
  absl::StatusOr<uint64_t> U64();
  absl::StatusOr<std::string> Bytes(size_t size);

 private:
  absl::Status Fill(size_t size);

  MigrationStreamSource& source_;
  std::vector<char> buffer_;
  size_t begin_ = 0;
  size_t end_ = 0;
  uint64_t consumed_ = 0;
};

}  // namespace still::session
