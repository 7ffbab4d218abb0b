#include "store/crypto/secret.h"

#include <sodium.h>

#include <cstring>

#include "base/check.h"

namespace still {

SecretBytes::SecretBytes(size_t size) : size_(size) {
  STILL_CHECK(sodium_init() >= 0);  // Idempotent and thread-safe; without it there are no guard pages.
  data_ = static_cast<char*>(sodium_malloc(size));
  // Only address space can be missing here: a few pages. Going on without them would put a key somewhere else.
  STILL_CHECK(data_ != nullptr);
  sodium_memzero(data_, size);
}

SecretBytes SecretBytes::Copy(absl::string_view bytes) {
  SecretBytes copy(bytes.size());
  if (!bytes.empty()) std::memcpy(copy.data_, bytes.data(), bytes.size());
  return copy;
}

SecretBytes SecretBytes::Random(size_t size) {
  SecretBytes random(size);
  randombytes_buf(random.data_, size);
  return random;
}

SecretBytes& SecretBytes::operator=(SecretBytes&& other) noexcept {
  if (this != &other) {
    sodium_free(data_);
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
  }
  return *this;
}

SecretBytes::~SecretBytes() { sodium_free(data_); }

bool EqualInConstantTime(absl::string_view a, absl::string_view b) {
  return a.size() == b.size() && (a.empty() || sodium_memcmp(a.data(), b.data(), a.size()) == 0);
}

}  // namespace still
