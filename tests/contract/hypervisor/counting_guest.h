// A guest without an operating system: 512 bytes of boot sector that count, in memory and on up to two disks.
//
// For ever: ++n; n to memory (kCounterAddress, and a page that moves with n); n to sector 1 + n % 64 of the first disk;
// the same of the second; n to kDoneAddress; a dot to the serial port. So in every image of one instant
//     done <= newest record of disk 1 <= newest record of disk 0 <= counter <= done + 1.
// Before that it fills kFilledBegin..kFilledEnd, each page with its own address.
#pragma once

#include <cstdint>
#include <string>

#include "base/status.h"

namespace still::testing {

inline constexpr uint64_t kGuestMemoryBytes = 64 << 20;
inline constexpr uint64_t kCounterAddress = 0x8000;
inline constexpr uint64_t kDoneAddress = 0x8004;
inline constexpr uint64_t kFilledBegin = 16 << 20;
inline constexpr uint64_t kFilledEnd = 48 << 20;
inline constexpr uint64_t kSectorBytes = 512;
inline constexpr uint64_t kRecordSectors = 64;

// The boot sector.
std::string CountingGuest();
// A boot sector that resets the machine at once.
std::string ResettingGuest();
// One that switches it off at once.
std::string EndingGuest();

// A raw image of `size` bytes that begins with `boot_sector` (which may be empty).
absl::Status MakeRawDisk(const std::string& path, uint64_t size, const std::string& boot_sector);
// The newest record on an image of a disk.
uint32_t NewestRecord(const std::string& image);

}  // namespace still::testing
