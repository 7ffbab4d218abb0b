#include "snapshot/disk_drain.h"

#include <libnbd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace still::snapshot {
namespace {

// Requests of 1 MiB, eight under way: enough to keep QEMU's export busy without filling its memory.
constexpr uint64_t kRequestBytes = 1 << 20;
constexpr int kRequests = 8;
// Extents are asked for in steps, so that the answer (one entry for each change of state) stays bounded.
constexpr uint64_t kExtentStep = uint64_t{1} << 30;

struct CloseNbd {
  void operator()(nbd_handle* handle) const { ::nbd_close(handle); }
};
using Nbd = std::unique_ptr<nbd_handle, CloseNbd>;

absl::Status NbdError(const NbdSource& source, absl::string_view operation) {
  int error_number = ::nbd_get_errno();
  const char* text = ::nbd_get_error();
  absl::Status status = ErrnoStatus(error_number != 0 ? error_number : EIO, operation);
  return absl::Status(
      status.code() == absl::StatusCode::kInternal ? absl::StatusCode::kUnavailable : status.code(),
      absl::StrCat("NBD export ", source.export_name, ", ", operation, ": ", text ? text : "no reason given"));
}

// What a request's failure means. All that is asked for lies inside of the export, and the connection is a good one.
absl::Status RequestError(const NbdSource& source, nbd_handle* nbd, absl::string_view operation) {
  const int error_number = ::nbd_get_errno();
  absl::Status status = NbdError(source, operation);
  // The other side knows why it has hung up or takes the export away; libnbd may call what is asked then our mistake.
  if (error_number == ESHUTDOWN || ::nbd_aio_is_dead(nbd) == 1 || ::nbd_aio_is_closed(nbd) == 1) {
    return absl::UnavailableError(status.message());
  }
  // The only reason to refuse it: a pin that is broken (docs/qemu.md, "A capture"). QEMU answers that with EACCES, which
  // NBD has no number for.
  if (error_number == EINVAL) {
    return absl::AbortedError(absl::StrCat(
        "disk ", source.export_name, " cannot be read as of the snapshot's point any more: when the guest overwrote ",
        "a block, its old content could not be read and kept in time (a storage or a repository that was away, slow ",
        "or full); the guest went on, and this snapshot is lost; take it again (", status.message(), ")"));
  }
  // Of what the disk lies on; QEMU has told us no more.
  if (error_number == EIO) {
    return absl::UnavailableError(absl::StrCat(
        "disk ", source.export_name, " cannot be read: its storage fails, or the repository of a lazy restore is away ",
        "(`still ps` says more); nothing was changed, take the snapshot again when it is back (", status.message(),
        ")"));
  }
  return status;
}

absl::Status NoAnswer(const NbdSource& source) {
  return absl::DeadlineExceededError(absl::StrCat(
      "NBD export ", source.export_name, ": the server has not answered for ", absl::FormatDuration(source.patience)));
}

absl::Status AwaitAnswer(const NbdSource& source, nbd_handle* nbd) {
  int turns = ::nbd_poll(nbd, static_cast<int>(absl::ToInt64Milliseconds(source.patience)));
  if (turns < 0) return RequestError(source, nbd, "poll");
  return turns > 0 ? absl::OkStatus() : NoAnswer(source);
}

// Not by libnbd's calls that wait: they wait for ever for a server that was stopped.
absl::StatusOr<Nbd> Connect(const NbdSource& source) {
  Nbd nbd(::nbd_create());
  if (nbd == nullptr) return absl::ResourceExhaustedError("NBD: no memory for a connection");
  if (::nbd_set_export_name(nbd.get(), source.export_name.c_str()) < 0 ||
      ::nbd_add_meta_context(nbd.get(), LIBNBD_CONTEXT_BASE_ALLOCATION) < 0 ||
      (!source.dirty_context.empty() && ::nbd_add_meta_context(nbd.get(), source.dirty_context.c_str()) < 0) ||
      ::nbd_aio_connect_unix(nbd.get(), source.socket.c_str()) < 0) {
    return NbdError(source, "connect");
  }
  while (::nbd_aio_is_connecting(nbd.get()) == 1) {
    int turns = ::nbd_poll(nbd.get(), static_cast<int>(absl::ToInt64Milliseconds(source.patience)));
    if (turns < 0) return NbdError(source, "connect");
    if (turns == 0) return NoAnswer(source);
  }
  if (::nbd_aio_is_ready(nbd.get()) != 1) return NbdError(source, "connect");
  return nbd;
}

enum class What : char { kData, kZero, kClean };
struct Range {
  uint64_t offset;
  uint64_t length;
  What what;
};

// Collects the extents of one block-status request, per context.
struct Collector {
  const NbdSource* source;
  std::vector<Range> allocation;
  std::vector<Range> dirty;

  static int Extent(void* user, const char* context, uint64_t offset, uint32_t* entries, size_t count, int*) {
    auto* self = static_cast<Collector*>(user);
    bool is_dirty_map = self->source->dirty_context == context;
    if (!is_dirty_map && absl::string_view(context) != LIBNBD_CONTEXT_BASE_ALLOCATION) return 0;
    for (size_t i = 0; i + 1 < count; i += 2) {
      uint32_t length = entries[i];
      uint32_t flags = entries[i + 1];
      if (is_dirty_map) {
        self->dirty.push_back({offset, length, (flags & 1) != 0 ? What::kData : What::kClean});
      } else {
        self->allocation.push_back({offset, length, (flags & LIBNBD_STATE_ZERO) != 0 ? What::kZero : What::kData});
      }
      offset += length;
    }
    return 0;
  }
};

// Walks ranges that lie one behind the other; an empty list says the same everywhere.
class Cursor {
 public:
  Cursor(const std::vector<Range>& ranges, bool known) : ranges_(ranges), known_(known) {}
  // The range at `offset`, which only grows from call to call, cut off at `end`.
  Range At(uint64_t offset, uint64_t end) {
    if (!known_) return {offset, end - offset, What::kData};
    while (ranges_[next_].offset + ranges_[next_].length <= offset) ++next_;
    return {offset, std::min(end, ranges_[next_].offset + ranges_[next_].length) - offset, ranges_[next_].what};
  }
  // How far from `offset` on it is described without a gap; a server may describe less than it was asked for.
  uint64_t End(uint64_t offset, uint64_t limit) const {
    if (!known_) return limit;
    for (const Range& range : ranges_) {
      if (range.offset != offset) break;
      offset += range.length;
    }
    return std::min(offset, limit);
  }

 private:
  const std::vector<Range>& ranges_;
  const bool known_;
  size_t next_ = 0;
};

// Zero and clean ranges only count in whole blocks; what is between is data.
class Plan {
 public:
  explicit Plan(uint64_t size) : size_(size) {}

  void Add(Range range) {
    if (range.what != What::kData) {
      uint64_t begin = (range.offset + store::kBlockBytes - 1) / store::kBlockBytes * store::kBlockBytes;
      uint64_t end = range.offset + range.length;
      if (end != size_) end = end / store::kBlockBytes * store::kBlockBytes;
      if (begin >= end) {
        range.what = What::kData;
      } else {
        AddPiece({range.offset, begin - range.offset, What::kData});
        AddPiece({begin, end - begin, range.what});
        AddPiece({end, range.offset + range.length - end, What::kData});
        return;
      }
    }
    AddPiece(range);
  }
  const std::vector<Range>& ranges() const { return ranges_; }

 private:
  void AddPiece(Range range) {
    if (range.length == 0) return;
    if (!ranges_.empty() && ranges_.back().what == range.what) {
      ranges_.back().length += range.length;
    } else {
      ranges_.push_back(range);
    }
  }
  uint64_t size_;
  std::vector<Range> ranges_;
};

absl::Status AwaitBlockStatus(const NbdSource& source, nbd_handle* nbd, int64_t cookie) {
  int done = cookie < 0 ? -1 : 0;
  while (done == 0) {
    done = ::nbd_aio_command_completed(nbd, static_cast<uint64_t>(cookie));
    if (done == 0) STILL_RETURN_IF_ERROR(AwaitAnswer(source, nbd));
  }
  return done < 0 ? RequestError(source, nbd, "block status") : absl::OkStatus();
}

absl::StatusOr<std::vector<Range>> MakePlan(const NbdSource& source, nbd_handle* nbd, uint64_t size) {
  Plan plan(size);
  bool know_allocation = ::nbd_can_meta_context(nbd, LIBNBD_CONTEXT_BASE_ALLOCATION) == 1;
  if (!source.dirty_context.empty() && ::nbd_can_meta_context(nbd, source.dirty_context.c_str()) != 1) {
    return absl::FailedPreconditionError(
        absl::StrCat("NBD export ", source.export_name, " does not offer ", source.dirty_context));
  }
  if (!know_allocation && source.dirty_context.empty()) {
    plan.Add({0, size, What::kData});
    return plan.ranges();
  }
  uint64_t offset = 0;
  while (offset < size) {
    Collector collector{.source = &source};
    nbd_extent_callback callback{.callback = &Collector::Extent, .user_data = &collector, .free = nullptr};
    uint64_t step = std::min(kExtentStep, size - offset);
    STILL_RETURN_IF_ERROR(
        AwaitBlockStatus(source, nbd, ::nbd_aio_block_status(nbd, step, offset, callback, NBD_NULL_COMPLETION, 0)));
    Cursor allocation(collector.allocation, know_allocation);
    Cursor dirty(collector.dirty, !source.dirty_context.empty());
    uint64_t end = std::min(allocation.End(offset, offset + step), dirty.End(offset, offset + step));
    if (end == offset) {
      return absl::UnavailableError(
          absl::StrCat("NBD export ", source.export_name, ": the server does not describe offset ", offset));
    }
    while (offset < end) {
      Range changed = dirty.At(offset, end);
      Range data = allocation.At(offset, end);
      uint64_t length = std::min(changed.length, data.length);
      plan.Add({offset, length, changed.what == What::kClean ? What::kClean : data.what});
      offset += length;
    }
  }
  return plan.ranges();
}

// Keeps kRequests reads under way and hands each to the image as it arrives.
class Reader {
 public:
  Reader(const NbdSource& source, nbd_handle* nbd, store::ImageWriter& image)
      : source_(source), nbd_(nbd), image_(image) {}

  absl::Status Read(uint64_t offset, uint64_t length, uint64_t& bytes_read) {
    while (length > 0) {
      // Cut at multiples of the request size: requests then never straddle a chunk.
      uint64_t part = std::min(length, kRequestBytes - offset % kRequestBytes);
      STILL_ASSIGN_OR_RETURN(Slot * slot, FreeSlot());
      if (source_.pace != nullptr) source_.pace(part);
      slot->buffer.resize(part);
      slot->offset = offset;
      slot->cookie = ::nbd_aio_pread(nbd_, slot->buffer.data(), part, offset, NBD_NULL_COMPLETION, 0);
      if (slot->cookie < 0) return RequestError(source_, nbd_, "read");
      offset += part;
      length -= part;
      bytes_read += part;
    }
    return absl::OkStatus();
  }

  absl::Status Flush() {
    for (Slot& slot : slots_) {
      while (slot.cookie >= 0) {
        STILL_RETURN_IF_ERROR(Reap());
        if (slot.cookie >= 0) STILL_RETURN_IF_ERROR(AwaitAnswer(source_, nbd_));
      }
    }
    return absl::OkStatus();
  }

 private:
  struct Slot {
    int64_t cookie = -1;  // Negative: free.
    uint64_t offset = 0;
    std::string buffer;
  };

  absl::StatusOr<Slot*> FreeSlot() {
    for (;;) {
      STILL_RETURN_IF_ERROR(Reap());
      for (Slot& slot : slots_) {
        if (slot.cookie < 0) return &slot;
      }
      STILL_RETURN_IF_ERROR(AwaitAnswer(source_, nbd_));
    }
  }

  absl::Status Reap() {
    for (Slot& slot : slots_) {
      if (slot.cookie < 0) continue;
      int done = ::nbd_aio_command_completed(nbd_, static_cast<uint64_t>(slot.cookie));
      if (done < 0) return RequestError(source_, nbd_, absl::StrCat("read at ", slot.offset));
      if (done == 0) continue;
      slot.cookie = -1;
      STILL_RETURN_IF_ERROR(image_.Write(slot.offset, slot.buffer));
    }
    return absl::OkStatus();
  }

  const NbdSource& source_;
  nbd_handle* nbd_;
  store::ImageWriter& image_;
  std::array<Slot, kRequests> slots_;
};

}  // namespace

absl::StatusOr<uint64_t> NbdSize(const NbdSource& source) {
  STILL_ASSIGN_OR_RETURN(Nbd nbd, Connect(source));
  int64_t size = ::nbd_get_size(nbd.get());
  if (size < 0) return NbdError(source, "size");
  return static_cast<uint64_t>(size);
}

absl::StatusOr<DrainedDisk> DrainDisk(const NbdSource& source, uint64_t size, store::ImageWriter& image,
                                      const std::function<void(uint64_t)>& progress) {
  // Slots outlive the connection that reads into them: `nbd` is closed first.
  STILL_ASSIGN_OR_RETURN(Nbd nbd, Connect(source));
  int64_t served = ::nbd_get_size(nbd.get());
  if (served < 0) return NbdError(source, "size");
  if (static_cast<uint64_t>(served) != size) {
    return absl::FailedPreconditionError(
        absl::StrCat("NBD export ", source.export_name, " has ", served, " bytes where ", size, " were announced"));
  }
  STILL_ASSIGN_OR_RETURN(std::vector<Range> plan, MakePlan(source, nbd.get(), size));
  DrainedDisk drained;
  auto reader = std::make_unique<Reader>(source, nbd.get(), image);
  absl::Status status;
  for (const Range& range : plan) {
    switch (range.what) {
      case What::kZero:
        status = image.WriteZeros(range.offset, range.length);
        break;
      case What::kClean:
        status = image.KeepParent(range.offset, range.length);
        drained.bytes_clean += range.length;
        break;
      case What::kData:
        // In steps, for the progress.
        for (uint64_t done = 0; done < range.length && status.ok(); done += 16 * kRequestBytes) {
          uint64_t part = std::min(16 * kRequestBytes, range.length - done);
          status = reader->Read(range.offset + done, part, drained.bytes_read);
          progress(range.offset + done + part);
        }
        break;
    }
    if (!status.ok()) break;
    progress(range.offset + range.length);
  }
  if (status.ok()) status = reader->Flush();
  nbd.reset();
  if (!status.ok()) return status;
  return drained;
}

}  // namespace still::snapshot
