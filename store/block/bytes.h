// Little-endian integers and varints in byte strings, and a reader that cannot run over the end.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>

#include "absl/strings/string_view.h"

namespace still::store {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "integers are stored as they lie in memory");

template <typename T>
void AppendInt(std::string& out, T value) {
  static_assert(std::is_integral_v<T>);
  out.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

template <typename T>
T LoadInt(const char* from) {
  static_assert(std::is_integral_v<T>);
  T value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

inline void AppendVarint(std::string& out, uint64_t value) {
  while (value >= 0x80) {
    out.push_back(static_cast<char>(value | 0x80));
    value >>= 7;
  }
  out.push_back(static_cast<char>(value));
}

inline void AppendSignedVarint(std::string& out, int64_t value) {
  AppendVarint(out, (static_cast<uint64_t>(value) << 1) ^ static_cast<uint64_t>(value >> 63));
}

// Reads from the front. After a read beyond the end, or of a varint that is too long, ok() is false for good and every
// value is zero; check once at the end, and before a value is used as a size.
class ByteReader {
 public:
  explicit ByteReader(absl::string_view bytes) : rest_(bytes) {}

  template <typename T>
  T Int() {
    absl::string_view bytes = Bytes(sizeof(T));
    return bytes.empty() ? T{0} : LoadInt<T>(bytes.data());
  }
  uint64_t Varint();
  int64_t SignedVarint() {
    uint64_t value = Varint();
    return static_cast<int64_t>(value >> 1) ^ -static_cast<int64_t>(value & 1);
  }
  // Empty when there are fewer.
  absl::string_view Bytes(size_t size);

  bool ok() const { return ok_; }
  bool AtEnd() const { return ok_ && rest_.empty(); }
  size_t remaining() const { return rest_.size(); }

 private:
  absl::string_view rest_;
  bool ok_ = true;
};

}  // namespace still::store
