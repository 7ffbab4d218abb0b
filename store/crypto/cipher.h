// ObjectCipher: seals and opens the frames of one stored object with AES-256-GCM.
//
// Every object has a key of its own, derived from the repository's key, the object's kind and name, and a random salt
// of 32 bytes which the object carries in the clear. The nonce of a frame is its position. So a frame opens only where
// it was written: in another object the key differs, at another position the nonce. docs/format/keys.md has the
// argument why no key and nonce ever meet twice.
//
// The rule that argument rests on: with one cipher, seal each position at most once. An object that is written again
// (a retry, a replacement) gets a new cipher with a new salt.
//
// Thread-safe: several threads may seal and open with one cipher at the same time. Expanded keys are kept per thread
// and reused while the thread stays with one cipher.
#pragma once

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "base/status.h"
#include "store/crypto/secret.h"

namespace still {

class ObjectCipher {
 public:
  static constexpr size_t kSaltBytes = 32;
  static constexpr size_t kTagBytes = 16;  // A sealed frame is that much longer.

  ObjectCipher(ObjectCipher&&) = default;
  ObjectCipher& operator=(ObjectCipher&&) = default;

  // To be stored with the object, in the clear.
  absl::string_view salt() const { return salt_; }

  // Fills `out`, which must have plain.size() + kTagBytes (at most 2^36 - 32 bytes, the limit of GCM) and may begin
  // where `plain` does. `associated` is authenticated with the frame but not stored: pass the same bytes to Open().
  void Seal(uint64_t position, absl::string_view associated, absl::string_view plain, absl::Span<char> out) const;

  // Fills `out`, which must have sealed.size() - kTagBytes and may begin where `sealed` does. DATA_LOSS when these are
  // not the bytes that were sealed at this position of this object; `out` is then zeroes: never use it.
  absl::Status Open(uint64_t position, absl::string_view associated, absl::string_view sealed,
                    absl::Span<char> out) const;

 private:
  friend class RepositoryKeys;
  ObjectCipher(SecretBytes key, std::string salt);

  SecretBytes key_;
  std::string salt_;
  uint64_t serial_;  // Tells the threads' expanded keys apart; never reused in a process.
};

}  // namespace still
