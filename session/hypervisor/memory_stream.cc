#include "session/hypervisor/memory_stream.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "session/hypervisor/qemu/migration_stream.h"
#include "session/memory/page_stream.h"

namespace still::session {
namespace {

class FunctionSource final : public MigrationStreamSource {
 public:
  explicit FunctionSource(const ByteSource& source) : source_(source) {}
  absl::StatusOr<size_t> Read(char* out, size_t size) override { return source_(out, size); }

 private:
  const ByteSource& source_;
};

// The first bytes of a stream, and then the rest of it.
ByteSource Behind(std::string first, const ByteSource& rest) {
  return
      [first = std::move(first), taken = size_t{0}, &rest](char* out, size_t size) mutable -> absl::StatusOr<size_t> {
        if (taken == first.size()) return rest(out, size);
        const size_t part = std::min(size, first.size() - taken);
        std::memcpy(out, first.data() + taken, part);
        taken += part;
        return part;
      };
}

// Of a device state that came beside the memory: it must have no page of the memory itself.
class DeviceStateReceiver final : public MemoryStreamReceiver {
 public:
  DeviceStateReceiver(MemoryStreamReceiver& receiver, uint64_t memory_bytes)
      : receiver_(receiver), memory_bytes_(memory_bytes) {}
  absl::Status OnMemorySize(uint64_t size) override {
    return size == memory_bytes_ ? absl::OkStatus() : absl::DataLossError("the device state is of another memory");
  }
  absl::Status OnPages(uint64_t, absl::string_view) override { return Memory(); }
  absl::Status OnZeroPage(uint64_t) override { return Memory(); }
  absl::Status OnDeviceState(absl::string_view data) override { return receiver_.OnDeviceState(data); }

 private:
  static absl::Status Memory() { return absl::DataLossError("the device state has pages of the memory"); }

  MemoryStreamReceiver& receiver_;
  const uint64_t memory_bytes_;
};

absl::Status SplitPageStream(const ByteSource& source, MemoryStreamReceiver& receiver) {
  uint64_t memory_bytes = 0;
  std::string device_state;
  STILL_RETURN_IF_ERROR(ReadPageStream(
      source, MigrationStreamOptions{}.max_memory_bytes,
      {.on_memory =
           [&](uint64_t size, bool increment) {
             memory_bytes = size;
             absl::Status status = receiver.OnMemorySize(size);
             if (status.ok() && increment) status = receiver.OnIncrement();
             return status;
           },
       .on_pages = [&](uint64_t offset, absl::string_view pages) { return receiver.OnPages(offset, pages); },
       .on_device_state =
           [&](absl::string_view bytes) {
             device_state.append(bytes.data(), bytes.size());
             return absl::OkStatus();
           }}));
  const ByteSource nothing = [](char*, size_t) { return absl::StatusOr<size_t>(0); };
  const ByteSource kept = Behind(std::move(device_state), nothing);
  FunctionSource qemu_source(kept);
  DeviceStateReceiver device_receiver(receiver, memory_bytes);
  return SplitMigrationStream(qemu_source, MigrationStreamOptions{}, device_receiver).status();
}

}  // namespace

absl::Status SplitMemoryStream(absl::string_view format, const ByteSource& source, MemoryStreamReceiver& receiver) {
  if (format != "qemu-migration-3") {
    return absl::InvalidArgumentError(absl::StrCat("memory stream format \"", format, "\" is not known here"));
  }
  // Which way the memory is saved is decided when the capture begins: the stream itself says it.
  std::string first(kPageStreamMagicBytes, '\0');
  for (size_t filled = 0; filled < first.size();) {
    STILL_ASSIGN_OR_RETURN(size_t got, source(first.data() + filled, first.size() - filled));
    if (got == 0) return absl::DataLossError("the memory stream ended before it began");
    filled += got;
  }
  if (first == kPageStreamMagic) return SplitPageStream(source, receiver);
  const ByteSource whole = Behind(std::move(first), source);
  FunctionSource qemu_source(whole);
  return SplitMigrationStream(qemu_source, MigrationStreamOptions{}, receiver).status();
}

}  // namespace still::session
