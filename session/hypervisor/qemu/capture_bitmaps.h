// The dirty bitmaps of captures: how they are called, and which of those on a disk are of no more use.
//
// Several repositories may hold snapshots of one machine, and each builds on the bitmap of its own newest one. So a
// bitmap carries its owner (the repository) and the time of its capture in its name:
//
//   still-OWNER-TIME-CAPTURE      still-7f3a09c2d1e4b586-00692b3a10-52fd8a0c11e94b7d
//
// A committed capture drops the other bitmaps of its owner, and nobody else's. Every bitmap costs the guest's writes a
// little, so their number is bounded, and the oldest go first: a repository that is not used any more is forgotten, and
// so is what a command left behind that QEMU executed after it had been given up. Whoever loses a bitmap reads in full.
//
// Pure functions: nothing here talks to QEMU.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace still::session {

// As many repositories keep their bitmaps on one disk.
inline constexpr size_t kMaxBitmapOwners = 4;
// A repository needs one; more are what abandoned captures left.
inline constexpr size_t kMaxBitmapsOfAnOwner = 4;

// `repository_id`: hex digits, of which the first 16 count; empty: of nobody in particular. `capture_id`: [a-z0-9]+.
std::string BitmapName(absl::string_view repository_id, absl::Time now, absl::string_view capture_id);

// Whether a bitmap is one of a capture's. Older versions called them still-CAPTURE.
bool IsCaptureBitmap(absl::string_view name);

// Of the bitmaps `on_disk`, those that a capture of this repository makes useless by its commit of `committed`.
std::vector<std::string> SupersededBitmaps(const std::vector<std::string>& on_disk, absl::string_view committed);

// Of the bitmaps `on_disk`, the oldest that are too many. `base`, which a capture is about to build on, is not among
// them.
std::vector<std::string> SurplusBitmaps(const std::vector<std::string>& on_disk, absl::string_view base);

}  // namespace still::session
