// The guest's memory as the hypervisor has it mapped: guest-physical addresses to pointers, and the bitmap in which a
// live migration learns what we wrote. Knows nothing of rings or packets.
//
// This folder runs inside the hypervisor's process (docs/vsock.md). It depends on libc and the C++ standard library
// only, throws nothing, and fails by return value: whatever the guest does may break its own device and nothing else.
// Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace still::vsock {

struct MemoryRegion {
  uint64_t guest_address = 0;
  uint64_t size = 0;
  uint64_t user_address = 0;  // Where the region lies in this process.
};

class GuestMemory {
 public:
  // As many as the kernel's vhost takes (max_mem_regions); enough for any machine QEMU builds.
  static constexpr size_t kMaxRegions = 509;
  static constexpr uint64_t kLogPageBytes = 4096;  // VHOST_PAGE_SIZE: a bit in the log stands for this many bytes.

  // Replaces the map. False, and the old map stays, when a region is empty, wraps around or overlaps another.
  bool SetRegions(const MemoryRegion* regions, size_t count);

  // The pointer to guest address `address`, or null when nothing is mapped there. `*contiguous` is how many bytes can
  // be used from there on: a buffer that spans two regions is translated in two steps.
  uint8_t* Translate(uint64_t address, uint64_t* contiguous) const;
  // True when all of [address, address + size), an address of this process, is guest memory.
  bool ContainsUser(uint64_t address, uint64_t size) const;

  // The dirty bitmap, one bit a page from guest address 0 on, big enough for the highest region; null: no logging.
  void SetLog(uint8_t* log) { log_ = log; }
  bool logging() const { return log_ != nullptr; }
  void MarkDirty(uint64_t guest_address, uint64_t size) const;

 private:
  std::vector<MemoryRegion> regions_;
  uint8_t* log_ = nullptr;
  uint64_t end_ = 0;  // One past the highest guest address.
};

}  // namespace still::vsock
