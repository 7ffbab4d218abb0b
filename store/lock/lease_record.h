// The bytes of a lease (docs/format/locks.md, "The object"). Pure.
#pragma once

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/status.h"
#include "store/lock/process_view.h"

namespace still::store {

enum class LeaseKind { kShared, kExclusive };

struct LeaseRecord {
  LeaseKind kind = LeaseKind::kShared;
  std::string purpose;
  ProcessIdentity holder;
  absl::Duration term;
  uint64_t renewals = 0;
};

inline constexpr size_t kMaxLeaseBytes = 1024;
inline constexpr size_t kMaxPurposeLength = 64;
inline constexpr absl::Duration kMinLeaseTerm = absl::Seconds(1);
inline constexpr absl::Duration kMaxLeaseTerm = absl::Minutes(10);

// Characters of purpose and host that the format does not allow become '?', and what is too long is cut.
std::string EncodeLease(const LeaseRecord& record);
// DATA_LOSS for anything that EncodeLease() does not give.
absl::StatusOr<LeaseRecord> ParseLease(absl::string_view text);

}  // namespace still::store
