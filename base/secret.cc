#include "base/secret.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "absl/strings/strip.h"
#include "base/file.h"

namespace still {
namespace {

constexpr size_t kMaxSecret = 64 << 10;

}  // namespace

std::string TakeSecretVariable(const char* name) {
  char* value = std::getenv(name);
  if (value == nullptr) return "";
  std::string secret = value;
  // Before the name is gone: afterwards nobody knows where the bytes are.
  ::explicit_bzero(value, secret.size());
  ::unsetenv(name);
  return secret;
}

absl::StatusOr<OwnedFd> MakeSecretFd(absl::string_view secret) {
  OwnedFd fd(::memfd_create("still-secret", MFD_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus(errno, "memfd_create");
  STILL_RETURN_IF_ERROR(WriteAll(fd.get(), secret.data(), secret.size(), "secret"));
  return fd;
}

absl::StatusOr<std::string> ReadSecretFd(int fd) {
  constexpr char kWhat[] = "passphrase's descriptor";
  struct stat info {};
  if (::fstat(fd, &info) != 0) return ErrnoStatus(errno, kWhat);
  std::string text(kMaxSecret + 1, '\0');
  size_t size = 0;
  while (size < text.size()) {
    char* to = text.data() + size;
    const size_t room = text.size() - size;
    ssize_t got = S_ISREG(info.st_mode) ? ::pread(fd, to, room, static_cast<off_t>(size)) : ::read(fd, to, room);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoStatus(errno, kWhat);
    if (got == 0) break;
    size += static_cast<size_t>(got);
  }
  if (size > kMaxSecret) return absl::InvalidArgumentError("the passphrase is longer than 64 KiB");
  text.resize(size);
  return std::string(absl::StripSuffix(text, "\n"));
}

}  // namespace still
