// still-memory: the memory engine of one capture. Started by still-session with descriptors that only it can give; it is no
// command for people. Ends when its socket is closed, and leaves the machine's memory free.
#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstdint>
#include <iostream>
#include <memory>
#include <vector>

#include "absl/strings/numbers.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/status.h"
#include "session/memory/engine_protocol.h"
#include "session/memory/engine_service.h"
#include "session/memory/memory_saver.h"

namespace still {
namespace {

constexpr int kNumbers = 10;

absl::StatusOr<session::EngineBoard*> MapBoard(int fd) {
  struct stat info {};
  if (::fstat(fd, &info) != 0 || info.st_size != static_cast<off_t>(sizeof(session::EngineBoard))) {
    return absl::InvalidArgumentError("the board is of another version");
  }
  void* at = ::mmap(nullptr, sizeof(session::EngineBoard), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (at == MAP_FAILED) return ErrnoStatus(errno, "map the board");
  return static_cast<session::EngineBoard*>(at);
}

// PROTOCOL SOCKET USERFAULTFD BOARD PID ADDRESS BYTES STALL_MS MAX_WAITING_BYTES LEAVE_OUT
absl::Status Serve(const std::vector<uint64_t>& number) {
  if (number[0] != session::kEngineProtocol) return absl::InvalidArgumentError("still-session is of another version");
  STILL_ASSIGN_OR_RETURN(session::EngineBoard * board, MapBoard(static_cast<int>(number[3])));
  STILL_ASSIGN_OR_RETURN(std::unique_ptr<session::MemorySaver> saver,
                         session::MemorySaver::Create(
                             OwnedFd(static_cast<int>(number[2])),
                             {.pid = static_cast<pid_t>(number[4]), .address = number[5], .bytes = number[6]}, *board,
                             {.stall_limit = absl::Milliseconds(static_cast<int64_t>(number[7])),
                              .max_waiting_bytes = number[8],
                              .leave_out = static_cast<uint32_t>(number[9])}));
  return session::ServeEngine(static_cast<int>(number[1]), *saver);
}

int Main(int argc, char** argv) {
  SetLogLevel(LogLevel::kInfo);
  std::vector<uint64_t> numbers(kNumbers);
  bool good = argc == kNumbers + 1;
  for (int i = 0; good && i < kNumbers; ++i) good = absl::SimpleAtoi(argv[i + 1], &numbers[static_cast<size_t>(i)]);
  if (!good) {
    std::cerr << "still-memory is started by still-session; see docs/memory.md\n";
    return 2;
  }
  const absl::Status served = Serve(numbers);
  if (!served.ok()) LogError("memory engine", {{"error", served.ToString()}});
  return ExitCode(served);
}

}  // namespace
}  // namespace still

int main(int argc, char** argv) { return still::Main(argc, argv); }
