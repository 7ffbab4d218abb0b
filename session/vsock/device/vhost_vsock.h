// The kernel's /dev/vhost-vsock interface (linux/vhost.h), served in user space: what a hypervisor sets up by ioctl
// drives a VsockDevice on a thread of its own, bridged to UNIX sockets.
//
// Threads. The hypervisor calls Ioctl, usually while it holds its own big lock. Our thread writes guest memory, and
// such a write can wait for a background snapshot to save the page first; when that snapshot is stuck, only the
// hypervisor's main thread can set us free. So Ioctl never waits for our thread without a bound: see Baton.
#pragma once

#include <linux/vhost.h>
#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>

#include "session/vsock/device/device.h"
#include "session/vsock/device/unix_bridge.h"

namespace still::vsock {

// Mutual exclusion of the device thread and the controlling one, in which the latter goes first and does not wait for
// ever.
class Baton {
 public:
  void Take();  // The device thread.
  bool TakeForControl(uint64_t patience_us);
  void Give();

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool taken_ = false;
  int controls_waiting_ = 0;
};

class VhostVsock {
 public:
  // The features of the kernel's device, so that a guest sees no difference: VERSION_1, EVENT_IDX, INDIRECT_DESC,
  // LOG_ALL, NOTIFY_ON_EMPTY. SEQPACKET is missing: hypervisors must have it off for both (docs/vsock.md).
  static constexpr uint64_t kFeatures = 0x135000000;
  // How long an ioctl waits for the device thread before it goes on without it. The thread is only ever slow while it
  // waits for a page under a background snapshot, which takes milliseconds unless that snapshot is stuck.
  static constexpr uint64_t kControlPatienceUs = 1'000'000;

  struct Options {
    int listener_fd = -1;  // See UnixBridge. Both are borrowed.
    int directory_fd = -1;
    uint32_t port_seed = 0;  // Random for each instance: see VsockDevice.
    Limits limits;
    uint64_t control_patience_us = kControlPatienceUs;
  };

  // Null when descriptors are exhausted. Call StartThread before anything can move.
  static std::unique_ptr<VhostVsock> Create(const Options& options);
  // Ends the thread. (Inside a hypervisor the instance lives as long as the process.)
  ~VhostVsock();

  // Signals are blocked in the thread: the hypervisor's handlers run on its own threads only. Gives 0 or -errno.
  int StartThread();

  // One ioctl of linux/vhost.h: 0 or -errno, -ENOTTY for what the kernel's device does not have either.
  int Ioctl(unsigned long request, void* argument);

 private:
  // An eventfd of the hypervisor's. Usually our own duplicate; when descriptors have run out, its number is borrowed,
  // because to fail here would make QEMU abort.
  struct EventFd {
    int fd = -1;
    bool owned = false;
    void Set(int source);
  };
  struct Interrupt {
    std::mutex mutex;  // Held for the write to the eventfd only, never across guest memory.
    EventFd event;
  };

  explicit VhostVsock(const Options& options, int epoll_fd, int wake_fd);
  static void* ThreadMain(void* self);
  void Loop();
  bool Work(uint64_t now_us);
  void RaiseInterrupts();
  void Wake();

  int SetRunning(bool run);
  int SetMemory(const vhost_memory& table);
  int SetRing(unsigned long request, void* argument);
  int SetKick(const vhost_vring_file& file);
  int SetCall(const vhost_vring_file& file);
  int Control(unsigned long request, void* argument);
  void ApplyLog();

  const int epoll_fd_;
  const int wake_fd_;
  Baton baton_;  // Guards what follows, up to the interrupts.
  UnixBridge bridge_;
  VsockDevice device_;
  EventFd kicks_[2];
  uint64_t features_ = 0;
  uint8_t* log_base_ = nullptr;
  bool broken_reported_ = false;

  Interrupt interrupts_[2];
  // The controlling thread's own.
  const uint64_t control_patience_us_;
  bool abandoned_ = false;  // A stop did not get the baton: see SetRunning.
  uint16_t base_given_[2] = {0, 0};
  bool base_given_valid_[2] = {false, false};

  std::atomic<bool> quit_{false};
  pthread_t thread_{};
  bool thread_started_ = false;
};

}  // namespace still::vsock
