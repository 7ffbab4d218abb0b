// Leases come from untrusted storage. Whatever parses must come back the same from its own encoding.
#include <cstdint>

#include "base/check.h"
#include "store/lock/lease_record.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using still::store::LeaseRecord;
  absl::StatusOr<LeaseRecord> record =
      still::store::ParseLease(absl::string_view(reinterpret_cast<const char*>(data), size));
  if (!record.ok()) return 0;
  STILL_CHECK(record->term >= still::store::kMinLeaseTerm && record->term <= still::store::kMaxLeaseTerm);
  absl::StatusOr<LeaseRecord> again = still::store::ParseLease(still::store::EncodeLease(*record));
  STILL_CHECK(again.ok() && again->holder == record->holder && again->purpose == record->purpose &&
              again->kind == record->kind && again->renewals == record->renewals && again->term == record->term);
  return 0;
}
