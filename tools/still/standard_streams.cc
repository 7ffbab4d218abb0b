#include "tools/still/standard_streams.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <iostream>
#include <streambuf>

namespace still::cli {
namespace {

// All of it: 0, or the errno of what could not be written.
int WriteBytes(int fd, const char* next, size_t left) {
  while (left > 0) {
    const ssize_t put = ::write(fd, next, left);
    if (put < 0 && errno != EINTR) return errno;
    if (put <= 0) continue;
    next += put;
    left -= static_cast<size_t>(put);
  }
  return 0;
}

// What std::cout writes to: it remembers why a write failed, which streams do not.
class OutputBuffer final : public std::streambuf {
 public:
  OutputBuffer() { Empty(); }
  int error_number() const { return error_number_; }

 private:
  int_type overflow(int_type c) override {
    if (sync() != 0) return traits_type::eof();
    return traits_type::eq_int_type(c, traits_type::eof()) ? traits_type::not_eof(c)
                                                           : sputc(traits_type::to_char_type(c));
  }
  int sync() override {
    if (error_number_ == 0) error_number_ = WriteBytes(STDOUT_FILENO, pbase(), static_cast<size_t>(pptr() - pbase()));
    Empty();
    return error_number_ == 0 ? 0 : -1;
  }
  void Empty() { setp(bytes_.data(), bytes_.data() + bytes_.size()); }

  std::array<char, 65536> bytes_;
  int error_number_ = 0;
};

OutputBuffer& Output() {
  static auto* buffer = new OutputBuffer;  // std::cout is flushed after everything static is gone.
  return *buffer;
}

}  // namespace

void PrepareStandardStreams() {
  for (int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (::fcntl(fd, F_GETFD) >= 0 || errno != EBADF) continue;
    // The lowest free number is this one. The wrong way round: using it fails with EBADF, as if it were closed.
    (void)::open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY);
  }
  std::cout.rdbuf(&Output());
  if (::isatty(STDOUT_FILENO) == 1) std::cout << std::unitbuf;  // Somebody watches.
}

int FlushStandardOutput() {
  std::cout.flush();
  return Output().error_number();
}

bool WriteStandardOutput(absl::string_view bytes) {
  std::cout.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  return FlushStandardOutput() == 0;
}

int WriteStandardError(absl::string_view bytes) { return WriteBytes(STDERR_FILENO, bytes.data(), bytes.size()); }

}  // namespace still::cli
