#include "session/vsock/device/vhost_vsock.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <vector>

namespace still::vsock {
namespace {

uint64_t NowUs() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000 + static_cast<uint64_t>(now.tv_nsec) / 1000;
}

int TimeoutMs(uint64_t deadline_us, uint64_t now_us) {
  if (deadline_us == UINT64_MAX) return -1;
  if (deadline_us <= now_us) return 0;
  return static_cast<int>(std::min<uint64_t>((deadline_us - now_us + 999) / 1000, 60'000));
}

}  // namespace

void Baton::Take() {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [this] { return !taken_ && controls_waiting_ == 0; });
  taken_ = true;
}

bool Baton::TakeForControl(uint64_t patience_us) {
  std::unique_lock<std::mutex> lock(mutex_);
  ++controls_waiting_;
  bool free = changed_.wait_for(lock, std::chrono::microseconds(patience_us), [this] { return !taken_; });
  --controls_waiting_;
  if (free) {
    taken_ = true;
  } else {
    changed_.notify_all();
  }
  return free;
}

void Baton::Give() {
  std::lock_guard<std::mutex> lock(mutex_);
  taken_ = false;
  changed_.notify_all();
}

void VhostVsock::EventFd::Set(int source) {
  if (owned) ::close(fd);
  fd = source < 0 ? -1 : ::fcntl(source, F_DUPFD_CLOEXEC, 3);
  owned = fd >= 0;
  if (!owned) fd = source;
}

std::unique_ptr<VhostVsock> VhostVsock::Create(const Options& options) {
  int epoll_fd = ::epoll_create1(EPOLL_CLOEXEC);
  int wake_fd = ::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = EventTag(EventKind::kWake, 0);
  if (epoll_fd < 0 || wake_fd < 0 || ::epoll_ctl(epoll_fd, EPOLL_CTL_ADD, wake_fd, &event) != 0) {
    ::close(epoll_fd);
    ::close(wake_fd);
    return nullptr;
  }
  return std::unique_ptr<VhostVsock>(new VhostVsock(options, epoll_fd, wake_fd));
}

VhostVsock::VhostVsock(const Options& options, int epoll_fd, int wake_fd)
    : epoll_fd_(epoll_fd),
      wake_fd_(wake_fd),
      bridge_(epoll_fd, options.listener_fd, options.directory_fd),
      device_(options.limits, &bridge_, options.port_seed),
      control_patience_us_(options.control_patience_us) {
  bridge_.Attach(&device_);
}

VhostVsock::~VhostVsock() {
  if (thread_started_) {
    quit_.store(true);
    Wake();
    ::pthread_join(thread_, nullptr);
  }
  for (EventFd& kick : kicks_) kick.Set(-1);
  for (Interrupt& interrupt : interrupts_) interrupt.event.Set(-1);
  ::close(wake_fd_);
  ::close(epoll_fd_);
}

int VhostVsock::StartThread() {
  if (thread_started_) return 0;
  sigset_t all;
  sigset_t before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  int error = ::pthread_create(&thread_, nullptr, &ThreadMain, this);
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  thread_started_ = error == 0;
  return -error;
}

void* VhostVsock::ThreadMain(void* self) {
  ::pthread_setname_np(::pthread_self(), "still-vsock");
  static_cast<VhostVsock*>(self)->Loop();
  return nullptr;
}

void VhostVsock::Wake() {
  uint64_t one = 1;
  (void)!::write(wake_fd_, &one, sizeof one);  // Can only fail when it is already readable.
}

void VhostVsock::Loop() {
  epoll_event events[64];
  int timeout_ms = -1;
  while (!quit_.load()) {
    int count = ::epoll_wait(epoll_fd_, events, 64, timeout_ms);
    baton_.Take();
    uint64_t now_us = NowUs();
    for (int i = 0; i < count; ++i) {
      uint64_t tag = events[i].data.u64;
      if (KindOf(tag) == EventKind::kWake) {
        uint64_t ignored;
        (void)!::read(wake_fd_, &ignored, sizeof ignored);
      } else if (KindOf(tag) != EventKind::kKick) {  // A kick has done its work by waking us.
        bridge_.OnEvent(tag, events[i].events, now_us);
      }
    }
    bridge_.Tick(now_us);
    device_.Tick(now_us);
    bool more = Work(now_us);
    timeout_ms = more ? 0 : TimeoutMs(std::min(bridge_.NextDeadline(), device_.NextDeadline()), now_us);
    baton_.Give();
  }
}

// Moves packets until there is nothing to do. True when it gave up the turn before that.
bool VhostVsock::Work(uint64_t now_us) {
  constexpr int kRounds = 16;
  for (int round = 0; round < kRounds; ++round) {
    bool more = device_.Process(now_us);
    RaiseInterrupts();
    if (device_.broken() && !broken_reported_) {
      broken_reported_ = true;
      std::fprintf(stderr, "still-vsock: the guest broke its rings; its vsock device is off until it is reset\n");
    }
    if (!more && !device_.PrepareToWait()) return false;
  }
  return true;
}

void VhostVsock::RaiseInterrupts() {
  for (int i = 0; i < 2; ++i) {
    if (!device_.NeedsInterrupt(i)) continue;
    std::lock_guard<std::mutex> lock(interrupts_[i].mutex);
    uint64_t one = 1;
    if (interrupts_[i].event.fd >= 0) (void)!::write(interrupts_[i].event.fd, &one, sizeof one);
  }
}

int VhostVsock::Ioctl(unsigned long request, void* argument) {
  auto* number = static_cast<uint64_t*>(argument);
  switch (request) {
    case VHOST_GET_FEATURES:
      *number = kFeatures;
      return 0;
    case VHOST_GET_BACKEND_FEATURES:
      *number = 0;
      return 0;
    case VHOST_SET_OWNER:
    case VHOST_RESET_OWNER:
    case VHOST_SET_BACKEND_FEATURES:
    case VHOST_SET_LOG_FD:
    case VHOST_SET_VRING_ERR:
    case VHOST_SET_VRING_BUSYLOOP_TIMEOUT:
      return 0;
    case VHOST_SET_VRING_CALL:
      return SetCall(*static_cast<vhost_vring_file*>(argument));
    case VHOST_GET_VRING_BASE: {
      auto* state = static_cast<vhost_vring_state*>(argument);
      if (state->index > 1) return -ENOBUFS;
      state->num = base_given_[state->index] = device_.queue(static_cast<int>(state->index)).base();
      base_given_valid_[state->index] = true;
      return 0;
    }
    case VHOST_VSOCK_SET_RUNNING:
      return SetRunning(*static_cast<int*>(argument) != 0);
    default:
      break;
  }
  if (_IOC_TYPE(request) != VHOST_VIRTIO) return -ENOTTY;
  if (!baton_.TakeForControl(abandoned_ ? 0 : control_patience_us_)) return -EBUSY;
  abandoned_ = false;
  int result = Control(request, argument);
  baton_.Give();
  return result;
}

int VhostVsock::SetRunning(bool run) {
  if (!baton_.TakeForControl(abandoned_ ? 0 : control_patience_us_)) {
    if (run) return -EBUSY;
    // Our thread sits in a write to a page that a stuck snapshot holds. The machine must stop all the same; the thread
    // takes and completes nothing more when it comes back.
    abandoned_ = true;
    device_.RequestStop();
    return 0;
  }
  abandoned_ = false;
  int result = 0;
  if (run) {
    broken_reported_ = false;
    if (!device_.Start((features_ >> VIRTIO_RING_F_EVENT_IDX & 1) != 0, NowUs())) result = -EFAULT;
  } else {
    device_.Stop();
  }
  baton_.Give();
  Wake();
  return result;
}

int VhostVsock::Control(unsigned long request, void* argument) {
  uint64_t number = 0;
  switch (request) {
    case VHOST_SET_FEATURES:
      number = *static_cast<uint64_t*>(argument);
      if ((number & ~kFeatures) != 0) return -EOPNOTSUPP;
      features_ = number;
      ApplyLog();
      return 0;
    case VHOST_SET_LOG_BASE:
      log_base_ = reinterpret_cast<uint8_t*>(*static_cast<uint64_t*>(argument));
      ApplyLog();
      return 0;
    case VHOST_SET_MEM_TABLE:
      return SetMemory(*static_cast<vhost_memory*>(argument));
    case VHOST_VSOCK_SET_GUEST_CID:
      number = *static_cast<uint64_t*>(argument);
      if (number <= VsockDevice::kHostCid || number >= UINT32_MAX) return -EINVAL;
      device_.SetGuestCid(number);
      return 0;
    default:
      return SetRing(request, argument);
  }
}

void VhostVsock::ApplyLog() { device_.memory().SetLog((features_ >> VHOST_F_LOG_ALL & 1) != 0 ? log_base_ : nullptr); }

int VhostVsock::SetMemory(const vhost_memory& table) {
  if (table.nregions > GuestMemory::kMaxRegions) return -E2BIG;
  std::vector<MemoryRegion> regions;
  for (uint32_t i = 0; i < table.nregions; ++i) {
    const vhost_memory_region& region = table.regions[i];
    regions.push_back({region.guest_phys_addr, region.memory_size, region.userspace_addr});
  }
  return device_.memory().SetRegions(regions.data(), regions.size()) ? 0 : -EFAULT;
}

int VhostVsock::SetRing(unsigned long request, void* argument) {
  uint32_t index = *static_cast<uint32_t*>(argument);  // The first member of all of these.
  switch (request) {
    case VHOST_SET_VRING_NUM:
    case VHOST_SET_VRING_BASE:
    case VHOST_SET_VRING_ADDR:
    case VHOST_SET_VRING_KICK:
      break;
    default:
      return -ENOTTY;
  }
  if (index > 1) return -ENOBUFS;
  Virtqueue& queue = device_.queue(static_cast<int>(index));
  if (request == VHOST_SET_VRING_KICK) return SetKick(*static_cast<vhost_vring_file*>(argument));
  if (request == VHOST_SET_VRING_ADDR) {
    auto* address = static_cast<vhost_vring_addr*>(argument);
    bool good = queue.SetLayout({.descriptors = address->desc_user_addr,
                                 .available = address->avail_user_addr,
                                 .used = address->used_user_addr,
                                 .log_used = (address->flags & 1u << VHOST_VRING_F_LOG) != 0,
                                 .used_guest_address = address->log_guest_addr});
    return good ? 0 : -EINVAL;
  }
  if (queue.running()) return -EBUSY;
  uint32_t number = static_cast<vhost_vring_state*>(argument)->num;
  if (request == VHOST_SET_VRING_NUM) return queue.SetSize(number) ? 0 : -EINVAL;
  if (number > UINT16_MAX) return -EINVAL;
  // Nothing tells us of a guest's reset, but its rings begin anew then: another index than the one we gave at the stop.
  if (base_given_valid_[index] && base_given_[index] != number) device_.ResetConnections();
  queue.SetBase(static_cast<uint16_t>(number));
  return 0;
}

int VhostVsock::SetKick(const vhost_vring_file& file) {
  EventFd& kick = kicks_[file.index];
  if (kick.fd >= 0) ::epoll_ctl(epoll_fd_, EPOLL_CTL_DEL, kick.fd, nullptr);
  kick.Set(file.fd);
  if (kick.fd < 0) return 0;
  // Edges, and never read: like the kernel, we leave the count to the hypervisor, which may look at it as well.
  epoll_event event{};
  event.events = EPOLLIN | EPOLLET;
  event.data.u64 = EventTag(EventKind::kKick, file.index);
  return ::epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, kick.fd, &event) == 0 ? 0 : -errno;
}

// Without the baton: QEMU masks and unmasks interrupts at any time, and aborts when this fails.
int VhostVsock::SetCall(const vhost_vring_file& file) {
  if (file.index > 1) return -ENOBUFS;
  std::lock_guard<std::mutex> lock(interrupts_[file.index].mutex);
  interrupts_[file.index].event.Set(file.fd);
  return 0;
}

}  // namespace still::vsock
