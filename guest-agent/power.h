// Ending the guest in an orderly way.
#pragma once

#include <atomic>

namespace still::agent {

class Power {
 public:
  virtual ~Power() = default;
  // Returns at once; the guest ends soon after, when the caller's answer has had time to leave.
  virtual void Off(bool reboot) = 0;
};

// systemd where it runs. Else busybox's init is signalled (SIGUSR2 powers off, SIGTERM reboots). Where neither is, or
// the guest still runs after ten seconds: every process is asked to end, then killed, file systems are synced and made
// read-only, and reboot(2) is called.
class KernelPower : public Power {
 public:
  void Off(bool reboot) override;
  // The guest is being ended by this process: its SIGTERM, which goes to everybody, is not meant for it.
  bool ending() const { return ending_; }

 private:
  std::atomic<bool> ending_ = false;
};

}  // namespace still::agent
