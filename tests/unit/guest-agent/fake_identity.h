// The kernel's side of an identity, in memory.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "guest-agent/identity/identity_kernel.h"

namespace still::agent {

class FakeIdentityKernel : public IdentityKernel {
 public:
  absl::Status MixEntropy(absl::string_view bytes) override {
    calls.push_back("entropy");
    entropy = std::string(bytes);
    return entropy_status;
  }
  absl::Status SetWallClock(absl::Time time) override {
    calls.push_back("clock");
    wall = time;
    return absl::OkStatus();
  }
  absl::StatusOr<std::string> HostName() override { return hostname; }
  absl::Status SetHostName(const std::string& name) override {
    calls.push_back("hostname");
    hostname = name;
    return absl::OkStatus();
  }
  absl::Status SetMac(const std::string& interface, const std::string& mac) override {
    calls.push_back("mac");
    macs[interface] = mac;
    return absl::OkStatus();
  }

  std::vector<std::string> calls;
  std::string entropy;
  absl::Status entropy_status;
  absl::Time wall;
  std::string hostname = "old";
  std::map<std::string, std::string> macs;
};

}  // namespace still::agent
