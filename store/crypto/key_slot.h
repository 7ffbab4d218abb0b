// The bytes of a key slot: the master key wrapped under one secret. docs/format/keys.md, "Key slot", is the contract.
// Knows nothing of stores; key_ring.h keeps slots in one. Thread-safe (no state).
#pragma once

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/status.h"
#include "store/crypto/repository_keys.h"
#include "store/crypto/secret.h"

namespace still {

enum class KeyKind : uint8_t {  // Persisted.
  kPassphrase = 1,
  kKeyFile = 2,
};

// What Argon2id costs, here and for whoever guesses.
struct KeyCost {
  uint32_t passes = 3;
  uint32_t memory_kib = 256 << 10;
};
// Bounds of what a reader accepts: a forged slot must not take all memory or hours.
inline constexpr uint32_t kMaxKeyPasses = 16;
inline constexpr uint32_t kMinKeyMemoryKib = 8 << 10;
inline constexpr uint32_t kMaxKeyMemoryKib = 1 << 20;
inline constexpr size_t kMaxKeySlotBytes = 8192;

struct KeyDescription {
  std::string label;  // At most 255 bytes of UTF-8.
  std::string host;   // Where it was added; cut to 255 bytes.
  absl::Time created;
};

// The part that is clear.
struct KeySlotHeader {
  KeyKind kind = KeyKind::kPassphrase;
  KeyCost cost;
};

// Wraps the master key of `keys`. `name` is the object's name. INVALID_ARGUMENT for a cost out of bounds, an empty
// secret or a label that is too long; RESOURCE_EXHAUSTED when the memory for Argon2id is not there. Takes about a
// second.
absl::StatusOr<std::string> EncodeKeySlot(absl::string_view name, KeyKind kind, const SecretBytes& secret, KeyCost cost,
                                          const KeyDescription& description, const RepositoryKeys& keys);

// Limits, magic, version and checksum only. DATA_LOSS; FAILED_PRECONDITION for a newer version.
absl::StatusOr<KeySlotHeader> ParseKeySlotHeader(absl::string_view slot);

// PERMISSION_DENIED: not this slot's secret. DATA_LOSS: damaged or tampered with. Otherwise as ParseKeySlotHeader() and
// EncodeKeySlot().
absl::StatusOr<RepositoryKeys> OpenKeySlot(absl::string_view name, absl::string_view slot, const SecretBytes& secret);

// What a slot says about itself, authenticated by the keys of the repository it belongs to. DATA_LOSS when it does not.
absl::StatusOr<KeyDescription> DescribeKeySlot(absl::string_view name, absl::string_view slot,
                                               const RepositoryKeys& keys);

}  // namespace still
