#include "session/hypervisor/qemu/migration_stream.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "session/hypervisor/qemu/stream_window.h"

namespace still::session {
namespace {

constexpr uint64_t kPageBytes = 4096;
constexpr uint64_t kFlagMask = kPageBytes - 1;

constexpr char kMagic[] = "QEVM\0\0\0\3";
constexpr size_t kMagicBytes = 8;

enum SectionType : uint8_t {
  kEndOfStream = 0x00,
  kStart = 0x01,
  kPart = 0x02,
  kEnd = 0x03,
  kFull = 0x04,
  kSubsection = 0x05,
  kDescription = 0x06,
  kConfiguration = 0x07,
  kFooter = 0x7e,
};

enum PageFlag : uint64_t {
  kZero = 0x02,
  kBlockList = 0x04,
  kPage = 0x08,
  kEndOfSection = 0x10,
  kContinue = 0x20,
};

// The longest record: flags, a block's name, a page; and the configuration.
constexpr size_t kMinBufferBytes = 8 << 10;
constexpr size_t kMaxConfigurationBytes = 4096;  // Holds the machine type's name.
constexpr size_t kMaxBlocks = 256;               // Six in our machines, one or two more for each card.
// A run of neighbouring pages is handed over in one piece up to this size.
constexpr size_t kMaxRunBytes = 256 << 10;
// Ours hold every page once, a live migration's a few times; one that goes on for ever is an attack.
constexpr uint64_t kMaxPasses = 64;
// The description of the devices ends the stream; 46 KB in our machines. Found again at the end to prove that nothing
// is missing, so this much of the stream's end is remembered.
constexpr size_t kMaxDescriptionBytes = 1 << 20;

// A name as the stream holds it: one byte of length, then the bytes.
std::string Prefixed(const std::string& name) {
  return absl::StrCat(std::string(1, static_cast<char>(name.size())), name);
}

class Splitter {
 public:
  Splitter(MigrationStreamSource& source, const MigrationStreamOptions& options, MemoryStreamReceiver& receiver)
      : window_(source, std::max(options.buffer_bytes, kMinBufferBytes)), options_(options), receiver_(receiver) {}

  absl::StatusOr<MigrationStreamReport> Run();

 private:
  struct SectionName {
    uint32_t id = 0;
    bool is_ram = false;
    std::string bytes;  // As in the stream, to be repeated.
  };

  absl::StatusOr<std::string> Name();
  // Writing the device state.
  absl::Status Keep(absl::string_view bytes);
  absl::Status CheckLength() const;

  absl::Status Header();
  // False when the rest of the stream has been dealt with.
  absl::StatusOr<bool> Section();
  absl::StatusOr<SectionName> NamedSection(uint8_t type);
  absl::Status RamSection(uint8_t type, uint32_t id, std::string header);
  absl::Status RamRecords();
  absl::Status ConfigurationSubsection();
  absl::Status BlockList(uint64_t total);
  absl::Status PageRecord(uint64_t address, uint64_t flags);
  absl::Status MainPage(uint64_t address);
  absl::Status MainZero(uint64_t address);
  absl::Status KeptPage(uint64_t address, uint64_t flags);
  absl::Status FlushRun();
  absl::Status Rest();

  bool Seen(uint64_t address) const { return seen_[address / kPageBytes]; }

  StreamWindow window_;
  const MigrationStreamOptions& options_;
  MemoryStreamReceiver& receiver_;
  MigrationStreamReport report_;
  std::optional<uint32_t> ram_section_;
  std::map<std::string, uint64_t> blocks_;
  bool ignores_shared_ = false;  // The stream was made with x-ignore-shared.
  std::vector<bool> seen_;       // Pages of the main block that were reported with content.
  std::string current_block_;
  bool current_is_main_ = false;
  uint64_t current_size_ = 0;
  // The header of the ram section that is being read; emptied when it has been kept.
  std::string pending_header_;
  // Neighbouring pages, moved together inside the window's buffer.
  char* run_data_ = nullptr;
  size_t run_bytes_ = 0;
  uint64_t run_address_ = 0;
};

absl::StatusOr<std::string> Splitter::Name() {
  STILL_ASSIGN_OR_RETURN(uint8_t size, window_.U8());
  return window_.Bytes(size);
}

absl::Status Splitter::Keep(absl::string_view bytes) {
  report_.device_state_bytes += bytes.size();
  if (report_.device_state_bytes > options_.max_device_state_bytes) {
    return absl::DataLossError(
        absl::StrCat("memory stream broken: more than ", options_.max_device_state_bytes, " bytes of device state"));
  }
  return receiver_.OnDeviceState(bytes);
}

absl::Status Splitter::CheckLength() const {
  if (window_.consumed() <= options_.max_device_state_bytes + kMaxPasses * report_.memory_bytes)
    return absl::OkStatus();
  return BrokenStream("it does not end", window_.consumed());
}

absl::StatusOr<MigrationStreamReport> Splitter::Run() {
  STILL_RETURN_IF_ERROR(Header());
  for (bool more = true; more;) {
    STILL_ASSIGN_OR_RETURN(more, Section());
  }
  report_.stream_bytes = window_.consumed();
  return report_;
}

absl::Status Splitter::Header() {
  STILL_ASSIGN_OR_RETURN(std::string magic, window_.Bytes(kMagicBytes));
  if (absl::string_view(magic) != absl::string_view(kMagic, kMagicBytes)) {
    return BrokenStream("it does not begin with QEMU's mark and version 3", 0);
  }
  return Keep(magic);
}

absl::StatusOr<bool> Splitter::Section() {
  uint64_t at = window_.consumed();
  STILL_RETURN_IF_ERROR(CheckLength());
  STILL_ASSIGN_OR_RETURN(uint8_t type, window_.U8());
  switch (type) {
    case kConfiguration: {
      STILL_ASSIGN_OR_RETURN(uint32_t size, window_.U32());
      if (size > kMaxConfigurationBytes) return BrokenStream("configuration section too long", at);
      STILL_ASSIGN_OR_RETURN(std::string text, window_.Bytes(size));
      STILL_RETURN_IF_ERROR(Keep(absl::StrCat(std::string(1, static_cast<char>(type)), BigEndian32(size), text)));
      return true;
    }
    case kSubsection:
      STILL_RETURN_IF_ERROR(ConfigurationSubsection());
      return true;
    case kStart:
    case kFull: {
      STILL_ASSIGN_OR_RETURN(SectionName name, NamedSection(type));
      if (name.is_ram && type == kStart) {
        if (ram_section_.has_value()) return BrokenStream("a second ram section", at);
        ram_section_ = name.id;
        STILL_RETURN_IF_ERROR(RamSection(type, name.id, std::move(name.bytes)));
        return true;
      }
      if (type == kStart) return absl::UnimplementedError("memory stream: an iterated section that is not ram");
      if (report_.memory_bytes == 0) return BrokenStream("devices come before the memory", at);
      // Devices say nothing of their length, and nothing of theirs is to be taken out.
      STILL_RETURN_IF_ERROR(Keep(name.bytes));
      STILL_RETURN_IF_ERROR(Rest());
      return false;
    }
    case kPart:
    case kEnd: {
      STILL_ASSIGN_OR_RETURN(uint32_t id, window_.U32());
      if (!ram_section_.has_value() || id != *ram_section_) return BrokenStream("part of an unknown section", at);
      std::string header = absl::StrCat(std::string(1, static_cast<char>(type)), BigEndian32(id));
      STILL_RETURN_IF_ERROR(RamSection(type, id, std::move(header)));
      return true;
    }
    default:
      return BrokenStream(absl::StrCat("section type ", type), at);
  }
}

// The capabilities that the reader must have, too (migration/savevm.c, vmstate_capabilites). Ours needs none: the marks of
// this one are left out.
absl::Status Splitter::ConfigurationSubsection() {
  const uint64_t at = window_.consumed();
  STILL_ASSIGN_OR_RETURN(std::string name, Name());
  STILL_ASSIGN_OR_RETURN(uint32_t version, window_.U32());
  if (name != "configuration/capabilities" || version != 1 || ignores_shared_ || !blocks_.empty()) {
    return BrokenStream(absl::StrCat("subsection \"", absl::CEscape(name), "\""), at);
  }
  STILL_ASSIGN_OR_RETURN(uint32_t count, window_.U32());
  if (count != 1) return BrokenStream(absl::StrCat(count, " capabilities"), at);
  STILL_ASSIGN_OR_RETURN(std::string capability, Name());
  if (capability != "x-ignore-shared") {
    return absl::UnimplementedError(absl::StrCat("memory stream: capability \"", absl::CEscape(capability), "\""));
  }
  ignores_shared_ = true;
  return absl::OkStatus();
}

absl::StatusOr<Splitter::SectionName> Splitter::NamedSection(uint8_t type) {
  SectionName section;
  STILL_ASSIGN_OR_RETURN(section.id, window_.U32());
  STILL_ASSIGN_OR_RETURN(std::string name, Name());
  STILL_ASSIGN_OR_RETURN(std::string instance_and_version, window_.Bytes(8));
  section.is_ram = name == "ram";
  section.bytes = absl::StrCat(std::string(1, static_cast<char>(type)), BigEndian32(section.id), Prefixed(name),
                               instance_and_version);
  return section;
}

// A part that has nothing left in it when the main block's pages are out is dropped as a whole.
absl::Status Splitter::RamSection(uint8_t type, uint32_t id, std::string header) {
  pending_header_ = std::move(header);
  if (type != kPart) {
    STILL_RETURN_IF_ERROR(Keep(std::exchange(pending_header_, {})));
  }
  STILL_RETURN_IF_ERROR(RamRecords());
  uint64_t at = window_.consumed();
  STILL_ASSIGN_OR_RETURN(uint8_t footer, window_.U8());
  STILL_ASSIGN_OR_RETURN(uint32_t footer_id, window_.U32());
  if (footer != kFooter || footer_id != id) return BrokenStream("no footer after a section", at);
  if (type == kStart && report_.memory_bytes == 0) {
    return BrokenStream(absl::StrCat("no block ", options_.ram_block, " in its list"), at);
  }
  if (!pending_header_.empty()) return absl::OkStatus();
  return Keep(absl::StrCat(BigEndian64(kEndOfSection), std::string(1, static_cast<char>(kFooter)), BigEndian32(id)));
}

absl::Status Splitter::RamRecords() {
  // CONTINUE refers to the block of the record before, also across parts.
  for (;;) {
    uint64_t at = window_.consumed();
    // Need() may move the buffer, so a run that lies in it goes out first.
    if (!window_.Has(8 + 256 + kPageBytes)) STILL_RETURN_IF_ERROR(FlushRun());
    STILL_RETURN_IF_ERROR(CheckLength());
    STILL_ASSIGN_OR_RETURN(uint64_t header, window_.U64());
    uint64_t flags = header & kFlagMask;
    uint64_t address = header & ~kFlagMask;
    if (flags == kEndOfSection) return FlushRun();
    if (flags == kBlockList) {
      STILL_RETURN_IF_ERROR(BlockList(address));
      continue;
    }
    uint64_t kind = flags & ~uint64_t{kContinue};
    if (kind != kPage && kind != kZero) return BrokenStream(absl::StrCat("page flags ", absl::Hex(flags)), at);
    if ((flags & kContinue) == 0) {
      STILL_ASSIGN_OR_RETURN(current_block_, Name());
      auto block = blocks_.find(current_block_);
      if (block == blocks_.end()) {
        return BrokenStream(absl::StrCat("page of unknown block \"", absl::CEscape(current_block_), "\""), at);
      }
      current_is_main_ = current_block_ == options_.ram_block;
      current_size_ = block->second;
    }
    // Also when no record has named a block yet: its size is then 0.
    if (address >= current_size_) return BrokenStream("page beyond the end of its block", at);
    STILL_RETURN_IF_ERROR(PageRecord(address, kind));
  }
}

absl::Status Splitter::BlockList(uint64_t total) {
  uint64_t at = window_.consumed();
  if (!blocks_.empty()) return BrokenStream("a second list of blocks", at);
  STILL_RETURN_IF_ERROR(Keep(BigEndian64(total | kBlockList)));
  while (total > 0) {
    STILL_ASSIGN_OR_RETURN(std::string name, Name());
    STILL_ASSIGN_OR_RETURN(uint64_t size, window_.U64());
    if (size == 0 || size % kPageBytes != 0 || size > total) return BrokenStream("impossible block size", at);
    if (blocks_.size() >= kMaxBlocks) return BrokenStream("too many blocks", at);
    if (!blocks_.emplace(name, size).second) return BrokenStream("a block twice", at);
    total -= size;
    STILL_RETURN_IF_ERROR(Keep(absl::StrCat(Prefixed(name), BigEndian64(size))));
    if (ignores_shared_) STILL_RETURN_IF_ERROR(window_.U64().status());  // Its guest-physical address.
  }
  auto main = blocks_.find(options_.ram_block);
  if (main == blocks_.end()) return BrokenStream(absl::StrCat("no block ", options_.ram_block), at);
  if (main->second > options_.max_memory_bytes ||
      (options_.memory_bytes != 0 && main->second != options_.memory_bytes)) {
    return BrokenStream(absl::StrCat("memory of ", main->second, " bytes, expected ", options_.memory_bytes), at);
  }
  report_.memory_bytes = main->second;
  seen_.resize(report_.memory_bytes / kPageBytes);
  return receiver_.OnMemorySize(report_.memory_bytes);
}

absl::Status Splitter::PageRecord(uint64_t address, uint64_t flags) {
  if (!current_is_main_) return KeptPage(address, flags);
  if (flags == kPage) return MainPage(address);
  uint64_t at = window_.consumed();
  STILL_ASSIGN_OR_RETURN(uint8_t fill, window_.U8());
  if (fill != 0) return BrokenStream("a zero page that is not zero", at);
  return MainZero(address);
}

absl::Status Splitter::MainPage(uint64_t address) {
  ++report_.pages;
  if (Seen(address)) ++report_.repeated_pages;
  seen_[address / kPageBytes] = true;
  bool extends = run_bytes_ > 0 && address == run_address_ + run_bytes_ && run_bytes_ < kMaxRunBytes;
  if (!extends || !window_.Has(kPageBytes)) STILL_RETURN_IF_ERROR(FlushRun());
  STILL_ASSIGN_OR_RETURN(char* page, window_.Need(kPageBytes));
  window_.Consume(kPageBytes);
  if (run_bytes_ == 0) {
    run_data_ = page;
    run_address_ = address;
  } else {
    // Over the headers between the pages: cheaper than a call for each page.
    std::memmove(run_data_ + run_bytes_, page, kPageBytes);
  }
  run_bytes_ += kPageBytes;
  return absl::OkStatus();
}

absl::Status Splitter::MainZero(uint64_t address) {
  ++report_.zero_pages;
  if (!Seen(address)) return absl::OkStatus();
  ++report_.repeated_pages;
  seen_[address / kPageBytes] = false;
  STILL_RETURN_IF_ERROR(FlushRun());
  return receiver_.OnZeroPage(address);
}

// Pages of other blocks (firmware, tables) stay in the device state. The block is always named, since the record
// before, which CONTINUE would refer to, may be gone.
absl::Status Splitter::KeptPage(uint64_t address, uint64_t flags) {
  STILL_RETURN_IF_ERROR(FlushRun());
  size_t size = flags == kPage ? kPageBytes : 1;
  STILL_ASSIGN_OR_RETURN(std::string content, window_.Bytes(size));
  return Keep(absl::StrCat(std::exchange(pending_header_, {}), BigEndian64(address | flags), Prefixed(current_block_),
                           content));
}

absl::Status Splitter::FlushRun() {
  size_t size = std::exchange(run_bytes_, 0);
  if (size == 0) return absl::OkStatus();
  return receiver_.OnPages(run_address_, absl::string_view(run_data_, size));
}

absl::Status Splitter::Rest() {
  std::string tail;
  for (;;) {
    STILL_ASSIGN_OR_RETURN(absl::string_view bytes, window_.Some());
    if (bytes.empty()) break;
    STILL_RETURN_IF_ERROR(Keep(bytes));
    tail.append(bytes.data(), bytes.size());
    if (tail.size() > 2 * kMaxDescriptionBytes) tail.erase(0, tail.size() - kMaxDescriptionBytes);
    window_.Consume(bytes.size());
  }
  // [0x00 end of sections] [0x06] [be32 size] [JSON of that size], and nothing after it. Since the devices before it
  // say nothing of their length, it is looked for from the end.
  constexpr size_t kDescriptionHeader = 6;
  if (tail.size() > kDescriptionHeader && tail.back() == '}') {
    for (size_t at = tail.size() - kDescriptionHeader; at-- > 0;) {
      if (tail[at] != kEndOfStream || tail[at + 1] != kDescription) continue;
      if (LoadBigEndian32(tail.data() + at + 2) == tail.size() - at - kDescriptionHeader) {
        return absl::OkStatus();
      }
    }
  }
  return BrokenStream("the devices are not complete", window_.consumed());
}

class FdSource : public MigrationStreamSource {
 public:
  explicit FdSource(int fd) : fd_(fd) {}
  absl::StatusOr<size_t> Read(char* out, size_t size) override {
    for (;;) {
      ssize_t got = ::read(fd_, out, size);
      if (got >= 0) return static_cast<size_t>(got);
      if (errno != EINTR) return ErrnoStatus(errno, "read the memory stream");
    }
  }

 private:
  int fd_;
};

}  // namespace

absl::StatusOr<MigrationStreamReport> SplitMigrationStream(MigrationStreamSource& source,
                                                           const MigrationStreamOptions& options,
                                                           MemoryStreamReceiver& receiver) {
  return Splitter(source, options, receiver).Run();
}

absl::StatusOr<MigrationStreamReport> SplitMigrationStream(int fd, const MigrationStreamOptions& options,
                                                           MemoryStreamReceiver& receiver) {
  FdSource source(fd);
  return SplitMigrationStream(source, options, receiver);
}

}  // namespace still::session
