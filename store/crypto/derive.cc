#include "store/crypto/derive.h"

#include <sodium.h>

namespace still {
SecretBytes DeriveKey(absl::string_view key, absl::string_view salt, absl::string_view info) {
  static_assert(crypto_auth_hmacsha256_BYTES == kKeyBytes);
  // The states hold the key xored with constants: they are secrets too.
  SecretBytes state_memory(sizeof(crypto_auth_hmacsha256_state));
  auto* state = reinterpret_cast<crypto_auth_hmacsha256_state*>(state_memory.bytes());
  SecretBytes extracted(kKeyBytes);
  crypto_auth_hmacsha256_init(state, UnsignedBytes(salt), salt.size());
  crypto_auth_hmacsha256_update(state, UnsignedBytes(key), key.size());
  crypto_auth_hmacsha256_final(state, extracted.bytes());

  SecretBytes expanded(kKeyBytes);
  const unsigned char block_number = 1;
  crypto_auth_hmacsha256_init(state, extracted.bytes(), extracted.size());
  crypto_auth_hmacsha256_update(state, UnsignedBytes(info), info.size());
  crypto_auth_hmacsha256_update(state, &block_number, 1);
  crypto_auth_hmacsha256_final(state, expanded.bytes());
  return expanded;
}

}  // namespace still
