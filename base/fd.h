// OwnedFd closes its descriptor exactly once. Not shared, not duplicated behind your back: use Duplicate().
#pragma once

#include <utility>

#include "base/status.h"

namespace still {

class OwnedFd {
 public:
  OwnedFd() = default;
  explicit OwnedFd(int fd) : fd_(fd) {}
  OwnedFd(OwnedFd&& other) noexcept : fd_(other.Release()) {}
  OwnedFd& operator=(OwnedFd&& other) noexcept {
    Reset(other.Release());
    return *this;
  }
  OwnedFd(const OwnedFd&) = delete;
  OwnedFd& operator=(const OwnedFd&) = delete;
  ~OwnedFd() { Reset(); }

  bool valid() const { return fd_ >= 0; }
  int get() const { return fd_; }
  // Gives the descriptor up to the caller.
  int Release() { return std::exchange(fd_, -1); }
  void Reset(int fd = -1);
  // A second descriptor of the same open file, close-on-exec.
  absl::StatusOr<OwnedFd> Duplicate() const;

 private:
  int fd_ = -1;
};

}  // namespace still
