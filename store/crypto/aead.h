// AES-256-GCM under a key that is used once, so with a constant nonce. Only for keys that were derived from fresh
// randomness for one message: repository_keys.h and key_slot.h make them. Everything else uses those.
#pragma once

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "base/status.h"

namespace still {

inline constexpr size_t kTagBytes = 16;

// Fills `out`, which must have plain.size() + kTagBytes and may begin where `plain` does. `key` has 32 bytes. At most
// 2 GiB. Thread-safe.
void SealOnce(absl::string_view key, absl::string_view associated, absl::string_view plain, absl::Span<char> out);

// Fills `out`, which must have sealed.size() - kTagBytes and may begin where `sealed` does. DATA_LOSS when `sealed` was
// not sealed with this key and associated data; `out` is zeroes then. Thread-safe.
absl::Status OpenOnce(absl::string_view key, absl::string_view associated, absl::string_view sealed,
                      absl::Span<char> out);

}  // namespace still
