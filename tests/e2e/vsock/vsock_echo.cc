// The guest of the vsock test, in the agent's place: dials the host's port and echoes, for ever; and listens on
//   5000  echoes                                  5001  says the guest's CID and closes
//   5002  sends as many zero bytes as the line it reads says, and closes
//   5003  counts what it reads until the end, and says the count
#include <linux/vm_sockets.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
// After sys/socket.h: it needs sockaddr.
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

namespace {

bool WriteAll(int fd, const char* data, size_t size) {
  while (size > 0) {
    ssize_t written = ::write(fd, data, size);
    if (written <= 0) return false;
    data += written;
    size -= static_cast<size_t>(written);
  }
  return true;
}

void Echo(int fd) {
  std::vector<char> buffer(64 * 1024);
  for (;;) {
    ssize_t got = ::read(fd, buffer.data(), buffer.size());
    if (got <= 0 || !WriteAll(fd, buffer.data(), static_cast<size_t>(got))) return;
  }
}

void SayCid(int fd) {
  unsigned cid = 0;
  int device = ::open("/dev/vsock", O_RDONLY);
  ::ioctl(device, IOCTL_VM_SOCKETS_GET_LOCAL_CID, &cid);
  ::close(device);
  std::string text = std::to_string(cid) + "\n";
  WriteAll(fd, text.data(), text.size());
}

void SendZeros(int fd) {
  char line[32] = {};
  for (size_t at = 0; at + 1 < sizeof line && (at == 0 || line[at - 1] != '\n'); ++at) {
    if (::read(fd, line + at, 1) != 1) return;
  }
  std::vector<char> zeros(64 * 1024);
  for (uint64_t left = std::strtoull(line, nullptr, 10); left > 0;) {
    size_t size = std::min<uint64_t>(left, zeros.size());
    if (!WriteAll(fd, zeros.data(), size)) return;
    left -= size;
  }
}

void Count(int fd) {
  std::vector<char> buffer(64 * 1024);
  uint64_t count = 0;
  for (ssize_t got; (got = ::read(fd, buffer.data(), buffer.size())) > 0;) count += static_cast<uint64_t>(got);
  std::string text = std::to_string(count) + "\n";
  WriteAll(fd, text.data(), text.size());
}

void Serve(unsigned port, void (*service)(int)) {
  int listening = ::socket(AF_VSOCK, SOCK_STREAM, 0);
  sockaddr_vm address{};
  address.svm_family = AF_VSOCK;
  address.svm_cid = VMADDR_CID_ANY;
  address.svm_port = port;
  if (::bind(listening, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 || ::listen(listening, 512) != 0) {
    std::perror("vsock-echo: listen");
    std::exit(1);
  }
  for (;;) {
    int fd = ::accept(listening, nullptr, nullptr);
    if (fd < 0) continue;
    std::thread([fd, service] {
      service(fd);
      ::close(fd);
    }).detach();
  }
}

// The port on which the host waits, as the kernel command line has it for the agent.
unsigned HostPort() {
  char text[4096] = {};
  int fd = ::open("/proc/cmdline", O_RDONLY);
  ssize_t size = ::read(fd, text, sizeof text - 1);
  ::close(fd);
  const char* found = size > 0 ? std::strstr(text, "still.port=") : nullptr;
  return found != nullptr ? static_cast<unsigned>(std::strtoul(found + 11, nullptr, 10)) : 1024;
}

// From a privileged port, as the host wants it of an agent; a port of a connection that is being closed is passed over.
void DialForEver(unsigned port) {
  for (unsigned source = 1;; source = source % 1023 + 1) {
    int fd = ::socket(AF_VSOCK, SOCK_STREAM, 0);
    sockaddr_vm own{};
    own.svm_family = AF_VSOCK;
    own.svm_cid = VMADDR_CID_ANY;
    own.svm_port = source;
    if (::bind(fd, reinterpret_cast<sockaddr*>(&own), sizeof own) != 0) {
      ::close(fd);
      continue;
    }
    sockaddr_vm address{};
    address.svm_family = AF_VSOCK;
    address.svm_cid = VMADDR_CID_HOST;
    address.svm_port = port;
    if (::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0) Echo(fd);
    ::close(fd);
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
}

}  // namespace

int main() {
  ::signal(SIGPIPE, SIG_IGN);
  std::thread(Serve, 5000, Echo).detach();
  std::thread(Serve, 5001, SayCid).detach();
  std::thread(Serve, 5002, SendZeros).detach();
  std::thread(Serve, 5003, Count).detach();
  DialForEver(HostPort());
}
