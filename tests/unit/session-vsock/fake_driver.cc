#include "tests/unit/session-vsock/fake_driver.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace still::vsock {
namespace {

constexpr uint32_t kSendSlotBytes = 72 * 1024;
constexpr int kSendSlots = 8;
constexpr size_t kMaxTable = 16;  // Entries of an indirect table.

void StoreRelease(__virtio16* at, uint16_t value) { __atomic_store_n(at, value, __ATOMIC_RELEASE); }
uint16_t LoadAcquire(const __virtio16* at) { return __atomic_load_n(at, __ATOMIC_ACQUIRE); }

}  // namespace

FakeMemory::FakeMemory() : fd_(::memfd_create("fake-guest", MFD_CLOEXEC)), base_(nullptr) {
  if (fd_ < 0 || ::ftruncate(fd_, 2 * kRegionBytes) != 0) std::abort();
  void* mapped = ::mmap(nullptr, 2 * kRegionBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd_, 0);
  if (mapped == MAP_FAILED) std::abort();
  base_ = static_cast<uint8_t*>(mapped);
}

FakeMemory::~FakeMemory() {
  ::munmap(base_, 2 * kRegionBytes);
  ::close(fd_);
}

std::vector<MemoryRegion> FakeMemory::regions() const {
  auto user = reinterpret_cast<uint64_t>(base_);
  // The upper half first, so that nothing relies on their order or adjacency.
  return {{kHighAddress, kRegionBytes, user}, {kLowAddress, kRegionBytes, user + kRegionBytes}};
}

uint8_t* FakeMemory::At(uint64_t guest_address) const {
  if (guest_address >= kHighAddress) return base_ + (guest_address - kHighAddress);
  return base_ + kRegionBytes + (guest_address - kLowAddress);
}

uint64_t FakeMemory::Allocate(uint64_t size, uint64_t alignment) {
  next_ = (next_ + alignment - 1) / alignment * alignment;
  if (next_ < kHighAddress && next_ + size > kLowAddress + kRegionBytes) next_ = kHighAddress;
  uint64_t address = next_;
  next_ += size;
  if (next_ > kHighAddress + kRegionBytes) std::abort();
  return address;
}

FakeRing::FakeRing(FakeMemory* memory, uint16_t size, bool event_index)
    : memory_(memory),
      size_(size),
      descriptors_(memory->Allocate(sizeof(vring_desc) * size, 4096)),
      available_(memory->Allocate(sizeof(vring_avail) + 2 * size + (event_index ? 2 : 0), 2)),
      used_(memory->Allocate(sizeof(vring_used) + 8 * size + (event_index ? 2 : 0), 4096)),
      chains_(size),
      tables_(size) {
  for (uint16_t i = size; i > 0; --i) free_.push_back(static_cast<uint16_t>(i - 1));
}

vring_desc* FakeRing::descriptor(uint16_t index) {
  return reinterpret_cast<vring_desc*>(memory_->At(descriptors_)) + index;
}

Virtqueue::Layout FakeRing::layout() const {
  return {.descriptors = reinterpret_cast<uint64_t>(memory_->At(descriptors_)),
          .available = reinterpret_cast<uint64_t>(memory_->At(available_)),
          .used = reinterpret_cast<uint64_t>(memory_->At(used_)),
          .used_guest_address = used_};
}

uint16_t FakeRing::Add(const std::vector<Part>& parts, bool writable, bool indirect) {
  uint16_t write = writable ? VRING_DESC_F_WRITE : 0;
  std::vector<uint16_t> indices;
  for (size_t i = 0; i < (indirect ? 1 : parts.size()); ++i) {
    if (free_.empty()) std::abort();
    indices.push_back(free_.back());
    free_.pop_back();
  }
  uint16_t head = indices[0];
  auto flags = [&](size_t i) { return static_cast<uint16_t>(write | (i + 1 < parts.size() ? VRING_DESC_F_NEXT : 0)); };
  if (indirect) {
    if (parts.size() > kMaxTable) std::abort();
    if (tables_[head] == 0) tables_[head] = memory_->Allocate(sizeof(vring_desc) * kMaxTable);
    uint64_t table = tables_[head];
    for (size_t i = 0; i < parts.size(); ++i) {
      vring_desc entry{parts[i].address, parts[i].size, flags(i), static_cast<uint16_t>(i + 1)};
      std::memcpy(memory_->At(table) + i * sizeof entry, &entry, sizeof entry);
    }
    *descriptor(head) = {table, static_cast<uint32_t>(sizeof(vring_desc) * parts.size()), VRING_DESC_F_INDIRECT, 0};
  } else {
    for (size_t i = 0; i < parts.size(); ++i) {
      uint16_t next = i + 1 < parts.size() ? indices[i + 1] : 0;
      *descriptor(indices[i]) = {parts[i].address, parts[i].size, flags(i), next};
    }
  }
  chains_[head] = indices;
  Publish(head);
  return head;
}

void FakeRing::Publish(uint16_t head) {
  auto* available = reinterpret_cast<vring_avail*>(memory_->At(available_));
  StoreRelease(&available->ring[avail_index_ % size_], head);
  SetAvailableIndex(static_cast<uint16_t>(avail_index_ + 1));
}

void FakeRing::SetAvailableIndex(uint16_t index) {
  avail_index_ = index;
  StoreRelease(&reinterpret_cast<vring_avail*>(memory_->At(available_))->idx, index);
}

void FakeRing::StartAt(uint16_t index) {
  SetAvailableIndex(index);
  taken_ = index;
  StoreRelease(&reinterpret_cast<vring_used*>(memory_->At(used_))->idx, index);
}

std::optional<FakeRing::Used> FakeRing::Take() {
  if (used_index() == taken_) return std::nullopt;
  const auto* used = reinterpret_cast<const vring_used*>(memory_->At(used_));
  Used result{used->ring[taken_ % size_].id, used->ring[taken_ % size_].len};
  ++taken_;
  if (result.head >= size_ || chains_[result.head].empty()) std::abort();  // Not a chain that we gave.
  free_.insert(free_.end(), chains_[result.head].begin(), chains_[result.head].end());
  chains_[result.head].clear();
  return result;
}

void FakeRing::SetUsedEvent(uint16_t index) {
  StoreRelease(&reinterpret_cast<vring_avail*>(memory_->At(available_))->ring[size_], index);
}

void FakeRing::SetNoInterrupt(bool on) {
  StoreRelease(&reinterpret_cast<vring_avail*>(memory_->At(available_))->flags, on ? VRING_AVAIL_F_NO_INTERRUPT : 0);
}

uint16_t FakeRing::avail_event() const {
  auto* used = reinterpret_cast<vring_used*>(memory_->At(used_));
  return LoadAcquire(reinterpret_cast<const __virtio16*>(&used->ring[size_]));
}
uint16_t FakeRing::used_flags() const { return LoadAcquire(&reinterpret_cast<vring_used*>(memory_->At(used_))->flags); }
uint16_t FakeRing::used_index() const { return LoadAcquire(&reinterpret_cast<vring_used*>(memory_->At(used_))->idx); }

FakeDriver::FakeDriver(const Options& options)
    : window(options.window),
      options_(options),
      to_guest_(&memory_, options.ring_size, options.event_index),
      from_guest_(&memory_, options.ring_size, options.event_index),
      buffers_(options.ring_size),
      sending_(options.ring_size) {
  to_guest_.StartAt(options.start_index);
  from_guest_.StartAt(options.start_index);
  for (int i = 0; i < kSendSlots; ++i) send_slots_.push_back(memory_.Allocate(kSendSlotBytes));
}

void FakeDriver::Offer(int count) {
  for (int i = 0; i < count; ++i) {
    uint32_t header = sizeof(virtio_vsock_hdr);
    if (options_.split_header) {
      uint64_t at = memory_.Allocate(header);
      OfferBuffer({at, memory_.Allocate(options_.buffer_bytes)});
    } else {
      uint64_t at = memory_.Allocate(header + options_.buffer_bytes);
      OfferBuffer({at, at + header});
    }
  }
}

void FakeDriver::OfferBuffer(const Buffer& buffer) {
  uint32_t header = sizeof(virtio_vsock_hdr);
  std::vector<FakeRing::Part> parts = {{buffer.header, header}, {buffer.data, options_.buffer_bytes}};
  if (!options_.split_header) parts = {{buffer.header, header + options_.buffer_bytes}};
  // What the device does not write must not look like a packet.
  std::memset(memory_.At(buffer.header), 0xee, header);
  uint16_t head = to_guest_.Add(parts, true, options_.indirect);
  buffers_[head] = buffer;
}

virtio_vsock_hdr FakeDriver::Header(uint16_t op, uint32_t guest_port, uint32_t host_port) const {
  virtio_vsock_hdr header{};
  header.src_cid = cid;
  header.dst_cid = 2;
  header.src_port = guest_port;
  header.dst_port = host_port;
  header.type = VIRTIO_VSOCK_TYPE_STREAM;
  header.op = op;
  header.buf_alloc = window;
  header.fwd_cnt = forwarded;
  return header;
}

bool FakeDriver::Send(uint16_t op, uint32_t guest_port, uint32_t host_port, const std::string& data, uint32_t flags) {
  virtio_vsock_hdr header = Header(op, guest_port, host_port);
  header.len = static_cast<uint32_t>(data.size());
  header.flags = flags;
  return SendRaw(header, data);
}

bool FakeDriver::SendRaw(const virtio_vsock_hdr& header, const std::string& data) {
  return SendBytes(std::string(reinterpret_cast<const char*>(&header), sizeof header) + data);
}

bool FakeDriver::SendBytes(const std::string& bytes) {
  Reclaim();
  if (send_slots_.empty() || from_guest_.free_descriptors() < 2 || bytes.size() > kSendSlotBytes) return false;
  uint64_t slot = send_slots_.back();
  send_slots_.pop_back();
  std::memcpy(memory_.At(slot), bytes.data(), bytes.size());
  auto first = static_cast<uint32_t>(std::min(bytes.size(), sizeof(virtio_vsock_hdr)));
  std::vector<FakeRing::Part> parts = {{slot, first}};
  if (bytes.size() > first) parts.push_back({slot + first, static_cast<uint32_t>(bytes.size() - first)});
  uint16_t head = from_guest_.Add(parts, false, options_.indirect);
  sending_[head] = slot;
  return true;
}

int FakeDriver::Reclaim() {
  int count = 0;
  while (std::optional<FakeRing::Used> used = from_guest_.Take()) {
    send_slots_.push_back(sending_[used->head]);
    ++count;
  }
  return count;
}

std::optional<Packet> FakeDriver::Receive(bool offer_again) {
  std::optional<FakeRing::Used> used = to_guest_.Take();
  if (!used.has_value()) return std::nullopt;
  Buffer buffer = buffers_[used->head];
  Packet packet;
  std::memcpy(&packet.header, memory_.At(buffer.header), sizeof packet.header);
  if (used->length != sizeof packet.header + packet.header.len || packet.header.len > options_.buffer_bytes) {
    std::abort();  // The length in the used ring must be that of the packet.
  }
  packet.data.assign(reinterpret_cast<const char*>(memory_.At(buffer.data)), packet.header.len);
  if (offer_again) OfferBuffer(buffer);
  return packet;
}

}  // namespace still::vsock
