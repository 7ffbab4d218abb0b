// Durations and sizes as people write them: one grammar for every command, schedule, policy and reference.
#pragma once

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/status.h"

namespace still {

// Numbers with a unit (ms, s, m, h, d, w), and sums of them: "250ms", "30s", "1.5h", "7d", "2w", "1h30m"; "0" alone.
// A day has 24 hours. INVALID_ARGUMENT: anything else, what is negative, and what is longer than a hundred years.
absl::StatusOr<absl::Duration> ParseDuration(absl::string_view text);
// What ParseDuration reads: "1d2h30m". Whole seconds; what is shorter than one is left out.
std::string ShortDuration(absl::Duration duration);

// A whole number of bytes, or of K, M, G, T or P (powers of 1024): "4096", "512M", "2G", "2GiB". Case does not matter.
// INVALID_ARGUMENT: anything else, and what does not fit 64 bits.
absl::StatusOr<uint64_t> ParseSize(absl::string_view text);

}  // namespace still
