// What the library that is preloaded into a hypervisor tells of the hypervisor's memory, and to whom: one packet each
// (SOCK_SEQPACKET) on an inherited socket. See preload_memory.cc.
#pragma once

#include <cstdint>

namespace still::vsock {

// "<socket>,<file>,<kind>": the inherited descriptors, and how the file that the hypervisor takes for its memory is mapped.
inline constexpr char kMemoryVariable[] = "STILL_MEMORY";
inline constexpr char kMapAnonymous = 'a';  // The file is empty and only gives the size.
inline constexpr char kMapPrivate = 'p';
inline constexpr char kMapShared = 's';

struct MemoryNews {
  enum Kind : uint32_t {
    kDescriptor = 1,  // First. A userfaultfd is passed along, or `error` says why not.
    kMapped = 2,      // The memory lies at [address, address + bytes).
  };
  uint32_t kind = 0;
  int32_t error = 0;
  uint64_t address = 0;
  uint64_t bytes = 0;
};

}  // namespace still::vsock
