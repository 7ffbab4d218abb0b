#include "session/vsock/device/virtqueue.h"

#include <bit>
#include <cstring>

namespace still::vsock {
namespace {

static_assert(std::endian::native == std::endian::little, "virtio 1 rings are little-endian");

// Shared with the guest's processors: never read twice, never torn.
uint16_t Load(const __virtio16* at) { return __atomic_load_n(at, __ATOMIC_ACQUIRE); }
void Store(__virtio16* at, uint16_t value) { __atomic_store_n(at, value, __ATOMIC_RELEASE); }

}  // namespace

bool Virtqueue::SetSize(uint32_t size) {
  if (size == 0 || size > kMaxSize || !std::has_single_bit(size)) return false;
  size_ = size;
  return true;
}

bool Virtqueue::SetLayout(const Layout& layout) {
  // Alignments of virtio 1.1, section 2.6.
  if (layout.descriptors % 16 != 0 || layout.available % 2 != 0 || layout.used % 4 != 0) return false;
  layout_ = layout;
  return true;
}

bool Virtqueue::Start(bool event_index) {
  running_ = false;
  if (size_ == 0) return false;
  uint64_t event = event_index ? sizeof(__virtio16) : 0;
  if (!memory_->ContainsUser(layout_.descriptors, sizeof(vring_desc) * size_) ||
      !memory_->ContainsUser(layout_.available, sizeof(vring_avail) + sizeof(__virtio16) * size_ + event) ||
      !memory_->ContainsUser(layout_.used, sizeof(vring_used) + sizeof(vring_used_elem_t) * size_ + event)) {
    return false;
  }
  descriptors_ = reinterpret_cast<vring_desc*>(layout_.descriptors);
  available_ = reinterpret_cast<vring_avail*>(layout_.available);
  used_ = reinterpret_cast<vring_used*>(layout_.used);
  event_index_ = event_index;
  used_index_ = Load(&used_->idx);
  // Chains are completed in order and one by one, so the two indices differ only when a stop caught us between the
  // used ring's write and our own count (RequestStop): that chain is the driver's again.
  if (stop_requested() && static_cast<uint16_t>(used_index_ - base()) == 1) SetBase(used_index_);
  stop_requested_.store(false);
  signalled_valid_ = false;
  completed_ = false;
  running_ = true;
  return true;
}

uint16_t Virtqueue::AvailableIndex() const { return Load(&available_->idx); }

Virtqueue::Next Virtqueue::Broken() {
  running_ = false;
  return Next::kBroken;
}

bool Virtqueue::AddSegments(const vring_desc& descriptor, Chain* chain) const {
  if (((descriptor.flags & VRING_DESC_F_WRITE) != 0) != writable_) return false;
  uint64_t address = descriptor.addr;
  uint32_t left = descriptor.len;
  while (left > 0) {
    uint64_t contiguous = 0;
    uint8_t* data = memory_->Translate(address, &contiguous);
    if (data == nullptr || chain->count == Chain::kMaxSegments) return false;
    uint32_t size = contiguous < left ? static_cast<uint32_t>(contiguous) : left;
    chain->segments[chain->count++] = {data, size, address};
    chain->bytes += size;
    address += size;
    left -= size;
  }
  return true;
}

bool Virtqueue::ReadTable(const vring_desc& indirect, Chain* chain) const {
  uint32_t entries = indirect.len / sizeof(vring_desc);
  if (entries == 0 || indirect.len % sizeof(vring_desc) != 0) return false;
  uint32_t index = 0;
  // Each entry at most once, and no more of them than a chain may have pieces: a table that loops ends here.
  for (uint32_t steps = 0; steps < entries && steps < Chain::kMaxSegments; ++steps) {
    uint64_t contiguous = 0;
    const uint8_t* at = memory_->Translate(indirect.addr + uint64_t{index} * sizeof(vring_desc), &contiguous);
    if (at == nullptr || contiguous < sizeof(vring_desc)) return false;
    vring_desc descriptor;
    std::memcpy(&descriptor, at, sizeof descriptor);
    if ((descriptor.flags & VRING_DESC_F_INDIRECT) != 0 || !AddSegments(descriptor, chain)) return false;
    if ((descriptor.flags & VRING_DESC_F_NEXT) == 0) return true;
    index = descriptor.next;
    if (index >= entries) return false;
  }
  return false;
}

Virtqueue::Next Virtqueue::Peek(Chain* chain) {
  if (!running()) return Next::kEmpty;
  uint16_t base = this->base();
  uint16_t waiting = AvailableIndex() - base;
  if (waiting == 0) return Next::kEmpty;
  if (waiting > size_) return Broken();
  chain->count = 0;
  chain->bytes = 0;
  chain->writable = writable_;
  uint32_t index = Load(&available_->ring[base % size_]);
  chain->head = static_cast<uint16_t>(index);
  for (uint32_t steps = 0; steps < size_; ++steps) {
    if (index >= size_) return Broken();
    vring_desc descriptor;
    std::memcpy(&descriptor, &descriptors_[index], sizeof descriptor);
    if ((descriptor.flags & VRING_DESC_F_INDIRECT) != 0) {
      // A table ends its chain (section 2.6.5.3.1: not together with NEXT).
      bool good = (descriptor.flags & VRING_DESC_F_NEXT) == 0 && ReadTable(descriptor, chain);
      return good ? Next::kChain : Broken();
    }
    if (!AddSegments(descriptor, chain)) return Broken();
    if ((descriptor.flags & VRING_DESC_F_NEXT) == 0) return Next::kChain;
    index = descriptor.next;
  }
  return Broken();
}

void Virtqueue::LogUsed(uint64_t offset, uint64_t size) const {
  if (layout_.log_used) memory_->MarkDirty(layout_.used_guest_address + offset, size);
}

void Virtqueue::Complete(const Chain& chain, uint32_t written) {
  if (!running()) return;
  uint32_t slot = used_index_ % size_;
  vring_used_elem_t element{chain.head, written};
  std::memcpy(&used_->ring[slot], &element, sizeof element);
  if (!running()) return;
  ++used_index_;
  completed_ = true;
  Store(&used_->idx, used_index_);
  next_available_.store(static_cast<uint16_t>(base() + 1), std::memory_order_relaxed);
  LogUsed(offsetof(vring_used, ring) + sizeof(vring_used_elem_t) * slot, sizeof(vring_used_elem_t));
  LogUsed(offsetof(vring_used, idx), sizeof(__virtio16));
}

bool Virtqueue::NeedsInterrupt() {
  if (!running() || !completed_) return false;
  completed_ = false;
  __atomic_thread_fence(__ATOMIC_SEQ_CST);  // The driver's wish is read after our index is visible.
  if (!event_index_) return (Load(&available_->flags) & VRING_AVAIL_F_NO_INTERRUPT) == 0;
  uint16_t event = Load(&available_->ring[size_]);
  bool needed = !signalled_valid_ ||
                static_cast<uint16_t>(used_index_ - event - 1) < static_cast<uint16_t>(used_index_ - signalled_);
  signalled_ = used_index_;
  signalled_valid_ = true;
  return needed;
}

bool Virtqueue::EnableKicks() {
  if (!running()) return false;
  if (event_index_) {
    Store(reinterpret_cast<__virtio16*>(&used_->ring[size_]), base());
    LogUsed(offsetof(vring_used, ring) + sizeof(vring_used_elem_t) * size_, sizeof(__virtio16));
  } else {
    Store(&used_->flags, 0);
    LogUsed(offsetof(vring_used, flags), sizeof(__virtio16));
  }
  __atomic_thread_fence(__ATOMIC_SEQ_CST);  // The driver's index is read after our wish is visible.
  return AvailableIndex() != base();
}

void Virtqueue::DisableKicks() {
  if (!running() || event_index_) return;  // With event indices, the old one simply stays in the past.
  Store(&used_->flags, VRING_USED_F_NO_NOTIFY);
  LogUsed(offsetof(vring_used, flags), sizeof(__virtio16));
}

}  // namespace still::vsock
