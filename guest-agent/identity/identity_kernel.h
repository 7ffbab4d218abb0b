// The kernel's side of an identity: random generator, clock, host name, network addresses. A seam: tests have a fake.
#pragma once

#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "base/status.h"

namespace still::agent {

class IdentityKernel {
 public:
  virtual ~IdentityKernel() = default;
  // Mixes `entropy` in, credits it, and makes every CPU's generator start from the new state (random(4): RNDADDENTROPY,
  // then RNDRESEEDCRNG). OK means that the kernel acknowledged both: from now on it gives other numbers than any other
  // copy of this guest. Generators of running programs are not reached by it.
  virtual absl::Status MixEntropy(absl::string_view entropy) = 0;
  virtual absl::Status SetWallClock(absl::Time time) = 0;
  virtual absl::StatusOr<std::string> HostName() = 0;
  virtual absl::Status SetHostName(const std::string& name) = 0;
  // `mac` as "52:54:00:12:34:56". The interface stays up where its driver allows that.
  virtual absl::Status SetMac(const std::string& interface, const std::string& mac) = 0;
};

class RealIdentityKernel : public IdentityKernel {
 public:
  absl::Status MixEntropy(absl::string_view entropy) override;
  absl::Status SetWallClock(absl::Time time) override;
  absl::StatusOr<std::string> HostName() override;
  absl::Status SetHostName(const std::string& name) override;
  absl::Status SetMac(const std::string& interface, const std::string& mac) override;
};

// The six bytes of "52:54:00:12:34:56"; INVALID_ARGUMENT otherwise, and for group addresses.
absl::StatusOr<std::string> ParseMac(absl::string_view text);

}  // namespace still::agent
