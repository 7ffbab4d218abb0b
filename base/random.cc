#include "base/random.h"

#include <sys/random.h>

#include <cerrno>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace still {

void RandomBytes(void* out, size_t size) {
  auto* next = static_cast<char*>(out);
  while (size > 0) {
    ssize_t got = ::getrandom(next, size, 0);
    if (got < 0 && errno == EINTR) continue;
    STILL_CHECK(got > 0);
    next += got;
    size -= static_cast<size_t>(got);
  }
}

uint64_t RandomU64() {
  uint64_t value = 0;
  RandomBytes(&value, sizeof value);
  return value;
}

std::string RandomUuid() {
  std::string bytes(16, '\0');
  RandomBytes(bytes.data(), bytes.size());
  bytes[6] = static_cast<char>((bytes[6] & 0x0f) | 0x40);  // RFC 4122, 4.4: version 4,
  bytes[8] = static_cast<char>((bytes[8] & 0x3f) | 0x80);  // variant 10.
  std::string hex = absl::BytesToHexString(bytes);
  return absl::StrCat(hex.substr(0, 8), "-", hex.substr(8, 4), "-", hex.substr(12, 4), "-", hex.substr(16, 4), "-",
                      hex.substr(20));
}

}  // namespace still
