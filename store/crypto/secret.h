// SecretBytes: a few bytes that nobody else may see. Pages of their own, locked into memory (never swapped), left out
// of core dumps, with guard pages on both sides, overwritten before they are given back (libsodium's sodium_malloc).
//
// When RLIMIT_MEMLOCK is used up the pages are not locked but everything else still holds. One allocation takes four
// pages and three system calls: for keys, not for data. Not copied by accident: move, or Copy().
#pragma once

#include <cstddef>
#include <utility>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace still {

class SecretBytes {
 public:
  SecretBytes() = default;
  explicit SecretBytes(size_t size);  // Zeroes.
  static SecretBytes Copy(absl::string_view bytes);
  static SecretBytes Random(size_t size);
  SecretBytes(SecretBytes&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  SecretBytes& operator=(SecretBytes&& other) noexcept;
  SecretBytes(const SecretBytes&) = delete;
  SecretBytes& operator=(const SecretBytes&) = delete;
  ~SecretBytes();

  size_t size() const { return size_; }
  absl::string_view view() const { return {data_, size_}; }
  absl::Span<char> span() { return {data_, size_}; }
  unsigned char* bytes() { return reinterpret_cast<unsigned char*>(data_); }
  const unsigned char* bytes() const { return reinterpret_cast<const unsigned char*>(data_); }

 private:
  char* data_ = nullptr;
  size_t size_ = 0;
};

inline const unsigned char* UnsignedBytes(absl::string_view text) {
  return reinterpret_cast<const unsigned char*>(text.data());
}

// Takes as long whatever the bytes are; false at once for different lengths.
bool EqualInConstantTime(absl::string_view a, absl::string_view b);

}  // namespace still
