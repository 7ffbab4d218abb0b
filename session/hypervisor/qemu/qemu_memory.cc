#include "session/hypervisor/qemu/qemu_memory.h"

#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "base/unix_socket.h"
#include "session/hypervisor/memory_ways.h"
#include "session/memory/memory_engine.h"
#include "session/memory/write_protection.h"
#include "session/vsock/device/memory_news.h"
#include "session/vsock/preload_library.h"

namespace still::session {
namespace {

// The library speaks before QEMU does: who waits, waits in vain.
constexpr absl::Duration kNewsDeadline = absl::Seconds(1);

absl::StatusOr<std::pair<vsock::MemoryNews, OwnedFd>> NextNews(int socket) {
  STILL_RETURN_IF_ERROR(WaitReadable(socket, kNewsDeadline, "word of QEMU's memory"));
  std::pair<vsock::MemoryNews, OwnedFd> news;
  STILL_ASSIGN_OR_RETURN(const size_t got, ReceiveWithFd(socket, &news.first, sizeof news.first, news.second));
  if (got != sizeof news.first) {
    return absl::FailedPreconditionError("the library that is loaded into QEMU has not told of its memory");
  }
  return news;
}

// Why the library could not make the descriptor, and what would change it.
absl::Status NoDescriptor(int error) {
  if (error == EPERM || error == EACCES) {
    return absl::PermissionDeniedError(absl::StrCat("userfaultfd: ", UserfaultfdReason()));
  }
  return ErrnoStatus(error, "userfaultfd");
}

}  // namespace

MemoryHandover MemoryHandover::Prepare(const VmConfig& config, int saved_ram) {
  if (const char* wish = std::getenv("STILL_MEMORY_ENGINE"); wish != nullptr && std::strcmp(wish, "off") == 0) {
    return MemoryHandover("STILL_MEMORY_ENGINE=off");
  }
  MemoryHandover handover{std::string()};
  auto prepare = [&]() -> absl::Status {
    STILL_ASSIGN_OR_RETURN(handover.program_, FindMemoryEngine());
    STILL_ASSIGN_OR_RETURN(handover.library_, FindPreloadLibrary());
    int pair[2];
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) return ErrnoStatus(errno, "socketpair");
    handover.ours_ = OwnedFd(pair[0]);
    handover.theirs_ = OwnedFd(pair[1]);
    handover.memory_bytes_ = config.memory_bytes;
    handover.ram_ = saved_ram;
    if (config.incoming.has_value()) {
      handover.kind_ = config.incoming->share_ram ? vsock::kMapShared : vsock::kMapPrivate;
      return absl::OkStatus();
    }
    // Only its size counts: nothing is ever written into it.
    handover.kind_ = vsock::kMapAnonymous;
    handover.own_ram_ = OwnedFd(::memfd_create("still-ram", MFD_CLOEXEC));
    handover.ram_ = handover.own_ram_.get();
    if (!handover.own_ram_.valid() || ::ftruncate(handover.ram_, static_cast<off_t>(config.memory_bytes)) != 0) {
      return ErrnoStatus(errno, "memory file");
    }
    return absl::OkStatus();
  };
  const absl::Status prepared = prepare();
  return prepared.ok() ? std::move(handover) : MemoryHandover(std::string(prepared.message()));
}

void MemoryHandover::AddTo(ProcessOptions& process) const {
  if (!wanted()) return;
  process.inherited_fds.push_back(theirs_.get());
  if (own_ram_.valid()) process.inherited_fds.push_back(own_ram_.get());
  process.environment.emplace_back(vsock::kMemoryVariable,
                                   absl::StrCat(theirs_.get(), ",", ram_, ",", std::string(1, kind_)));
  Preload(library_, process.environment);
}

void MemoryHandover::HandedOver() {
  theirs_.Reset();
  own_ram_.Reset();
}

absl::Status MemoryHandover::Hear() {
  absl::Status no_descriptor;
  while (mapped_bytes_ == 0) {
    STILL_ASSIGN_OR_RETURN(auto news, NextNews(ours_.get()));
    switch (news.first.kind) {
      case vsock::MemoryNews::kDescriptor:
        userfaultfd_ = std::move(news.second);
        if (!userfaultfd_.valid()) no_descriptor = NoDescriptor(news.first.error);
        break;
      case vsock::MemoryNews::kMapped:
        address_ = news.first.address;
        mapped_bytes_ = news.first.bytes;
        break;
      default:
        return absl::InternalError("the library that is loaded into QEMU is of another version");
    }
  }
  return no_descriptor;
}

absl::Status MemoryHandover::CheckMapping() {
  if (!wanted()) return absl::OkStatus();
  heard_ = Hear();
  ours_.Reset();
  if (mapped_bytes_ != 0 || kind_ != vsock::kMapPrivate) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("QEMU has not loaded ", library_, " (", heard_.message(),
                   "); is it a static or a set-user-id program? Set STILL_MEMORY_ENGINE=off to start it without"));
}

absl::StatusOr<QemuMemory> MemoryHandover::Take(pid_t pid) {
  STILL_RETURN_IF_ERROR(heard_);
  QemuMemory memory{.userfaultfd = std::move(userfaultfd_),
                    .range = {.pid = pid, .address = address_, .bytes = mapped_bytes_},
                    .program = program_};
  if (mapped_bytes_ != memory_bytes_) {
    return absl::InternalError(absl::StrCat("QEMU has mapped ", mapped_bytes_, " bytes of memory"));
  }
  STILL_RETURN_IF_ERROR(NegotiateUserfaultfd(memory.userfaultfd.get()));
  WriteProtection protection(memory.userfaultfd.get(), memory.range.address, memory.range.bytes);
  STILL_RETURN_IF_ERROR(protection.Register());
  STILL_RETURN_IF_ERROR(protection.Unregister());
  // The engine reads it in the same way.
  STILL_ASSIGN_OR_RETURN(ProcessMemory readable, ProcessMemory::Open(memory.range));
  char byte;
  STILL_RETURN_IF_ERROR(readable.Read(0, &byte, 1));
  return memory;
}

}  // namespace still::session
