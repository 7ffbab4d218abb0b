// Key derivation: HKDF with HMAC-SHA-256 (RFC 5869), always for 32 bytes of output.
#pragma once

#include "absl/strings/string_view.h"
#include "store/crypto/secret.h"

namespace still {

inline constexpr size_t kKeyBytes = 32;

// `salt` may be empty (RFC 5869, 2.2: then it counts as 32 zeroes); `info` says what the key is for.
SecretBytes DeriveKey(absl::string_view key, absl::string_view salt, absl::string_view info);

}  // namespace still
