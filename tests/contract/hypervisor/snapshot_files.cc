#include "tests/contract/hypervisor/snapshot_files.h"

#include <fcntl.h>
#include <libnbd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "session/hypervisor/memory_stream.h"

namespace still::testing {
namespace {

struct NbdCloser {
  void operator()(nbd_handle* handle) const { nbd_close(handle); }
};
using Nbd = std::unique_ptr<nbd_handle, NbdCloser>;

absl::Status NbdError(absl::string_view what) {
  return absl::UnavailableError(absl::StrCat(what, ": ", nbd_get_error()));
}

absl::StatusOr<Nbd> ConnectTo(const session::PinnedDiskExport& exported, const std::string& context) {
  Nbd nbd(nbd_create());
  if (nbd == nullptr) return NbdError("nbd_create");
  nbd_set_export_name(nbd.get(), exported.nbd_export.c_str());
  if (!context.empty()) nbd_add_meta_context(nbd.get(), context.c_str());
  if (nbd_connect_unix(nbd.get(), exported.nbd_socket.c_str()) != 0) return NbdError("connect");
  return nbd;
}

}  // namespace

MemoryReader::MemoryReader(OwnedFd stream, std::string base)
    : stream_(std::move(stream)),
      ram_(::memfd_create("still-test-ram", MFD_CLOEXEC)),
      device_state_(::memfd_create("still-test-devices", MFD_CLOEXEC)),
      base_(std::move(base)) {
  thread_ = std::thread([this] {
    auto read = [this](char* out, size_t size) -> absl::StatusOr<size_t> {
      const ssize_t got = ::read(stream_.get(), out, size);
      if (got < 0) return ErrnoStatus(errno, "read the memory stream");
      return static_cast<size_t>(got);
    };
    result_ = session::SplitMemoryStream("qemu-migration-3", read, *this);
    stream_.Reset();
  });
}

MemoryReader::~MemoryReader() {
  if (thread_.joinable()) thread_.join();
}

absl::Status MemoryReader::Finish() {
  if (thread_.joinable()) thread_.join();
  return result_;
}

absl::StatusOr<uint32_t> MemoryReader::Word(uint64_t address) const {
  uint32_t word;
  STILL_RETURN_IF_ERROR(PReadExactly(ram_.get(), &word, sizeof word, address, "ram"));
  return word;
}

absl::Status MemoryReader::OnMemorySize(uint64_t size) {
  memory_bytes_ = size;
  return ::ftruncate(ram_.get(), static_cast<off_t>(size)) == 0 ? absl::OkStatus() : ErrnoStatus(errno, "ftruncate");
}

absl::Status MemoryReader::OnIncrement() {
  increment_ = true;
  if (base_.size() != memory_bytes_) return absl::FailedPreconditionError("an increment without its base");
  return PWriteAll(ram_.get(), base_.data(), base_.size(), 0, "ram");
}

absl::StatusOr<std::string> MemoryReader::Memory() const {
  std::string memory(memory_bytes_, '\0');
  STILL_RETURN_IF_ERROR(PReadExactly(ram_.get(), memory.data(), memory.size(), 0, "ram"));
  return memory;
}

absl::Status MemoryReader::OnPages(uint64_t offset, absl::string_view data) {
  bytes_of_pages_ += data.size();
  return PWriteAll(ram_.get(), data.data(), data.size(), offset, "ram");
}

absl::Status MemoryReader::OnZeroPage(uint64_t offset) { return OnPages(offset, std::string(4096, '\0')); }

absl::Status MemoryReader::OnDeviceState(absl::string_view data) {
  return WriteAll(device_state_.get(), data.data(), data.size(), "devices");
}

absl::StatusOr<std::string> ReadExport(const session::PinnedDiskExport& exported) {
  STILL_ASSIGN_OR_RETURN(Nbd nbd, ConnectTo(exported, ""));
  std::string content(exported.size, '\0');
  constexpr size_t kStep = 1 << 20;
  for (size_t at = 0; at < content.size(); at += kStep) {
    size_t size = std::min(kStep, content.size() - at);
    if (nbd_pread(nbd.get(), content.data() + at, size, at, 0) != 0) return NbdError("read");
  }
  return content;
}

absl::StatusOr<std::vector<DirtyRange>> ReadDirtyRanges(const session::PinnedDiskExport& exported) {
  STILL_ASSIGN_OR_RETURN(Nbd nbd, ConnectTo(exported, exported.dirty_context));
  struct State {
    uint64_t at = 0;
    std::vector<DirtyRange> ranges;
  } state;
  auto on_extent = [](void* user, const char*, uint64_t offset, uint32_t* entries, size_t count, int*) {
    auto* state = static_cast<State*>(user);
    for (size_t i = 0; i + 1 < count; i += 2) {
      if ((entries[i + 1] & 1) != 0) state->ranges.push_back({offset, entries[i]});
      offset += entries[i];
    }
    state->at = offset;
    return 0;
  };
  while (state.at < exported.size) {
    nbd_extent_callback callback{.callback = on_extent, .user_data = &state, .free = nullptr};
    uint64_t before = state.at;
    if (nbd_block_status(nbd.get(), exported.size - state.at, state.at, callback, 0) != 0) return NbdError("status");
    if (state.at == before) return absl::InternalError("no progress");
  }
  return state.ranges;
}

}  // namespace still::testing
