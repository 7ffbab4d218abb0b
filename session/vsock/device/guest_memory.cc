#include "session/vsock/device/guest_memory.h"

#include <algorithm>
#include <utility>

namespace still::vsock {

bool GuestMemory::SetRegions(const MemoryRegion* regions, size_t count) {
  if (count > kMaxRegions) return false;
  std::vector<MemoryRegion> sorted(regions, regions + count);
  std::sort(sorted.begin(), sorted.end(),
            [](const MemoryRegion& a, const MemoryRegion& b) { return a.guest_address < b.guest_address; });
  uint64_t end = 0;
  for (const MemoryRegion& region : sorted) {
    uint64_t region_end;
    uint64_t user_end;
    if (region.size == 0 || __builtin_add_overflow(region.guest_address, region.size, &region_end) ||
        __builtin_add_overflow(region.user_address, region.size, &user_end) || region.guest_address < end) {
      return false;
    }
    end = region_end;
  }
  regions_ = std::move(sorted);
  end_ = end;
  return true;
}

uint8_t* GuestMemory::Translate(uint64_t address, uint64_t* contiguous) const {
  auto after = std::upper_bound(regions_.begin(), regions_.end(), address,
                                [](uint64_t a, const MemoryRegion& region) { return a < region.guest_address; });
  if (after == regions_.begin()) return nullptr;
  const MemoryRegion& region = *std::prev(after);
  uint64_t offset = address - region.guest_address;
  if (offset >= region.size) return nullptr;
  *contiguous = region.size - offset;
  return reinterpret_cast<uint8_t*>(region.user_address + offset);
}

bool GuestMemory::ContainsUser(uint64_t address, uint64_t size) const {
  while (size > 0) {
    auto holds = [address](const MemoryRegion& region) {
      return address >= region.user_address && address - region.user_address < region.size;
    };
    auto region = std::find_if(regions_.begin(), regions_.end(), holds);
    if (region == regions_.end()) return false;
    uint64_t step = std::min(size, region->size - (address - region->user_address));
    address += step;
    size -= step;
  }
  return true;
}

void GuestMemory::MarkDirty(uint64_t guest_address, uint64_t size) const {
  if (log_ == nullptr || size == 0 || guest_address >= end_) return;
  uint64_t last = std::min(guest_address + (size - 1), end_ - 1) / kLogPageBytes;
  for (uint64_t page = guest_address / kLogPageBytes; page <= last; ++page) {
    // The migration thread reads and clears the bitmap meanwhile.
    __atomic_fetch_or(&log_[page / 8], static_cast<uint8_t>(1u << (page % 8)), __ATOMIC_RELAXED);
  }
}

}  // namespace still::vsock
