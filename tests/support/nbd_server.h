// A read-only NBD server in this process, for tests: newstyle negotiation, structured replies, block status for
// "base:allocation" and one dirty context (NBD protocol, doc/proto.md of the nbd project). It can be told to fail or to
// hang, which a real server cannot.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/fd.h"
#include "base/status.h"

namespace still::testing {

struct NbdExport {
  std::string name;
  std::string content;
  std::string dirty_context;              // Empty: none.
  std::set<uint64_t> dirty;               // Numbers of blocks of kDirtyBlock bytes.
  uint64_t fail_reads_from = UINT64_MAX;  // Reads that reach this offset get read_error.
  uint64_t hang_reads_from = UINT64_MAX;  // They get no answer until the server ends.
  bool hang_status = false;               // So do questions for extents.
  uint64_t drop_reads_from = UINT64_MAX;  // They end their connection.
  uint32_t read_error = 5;                // NBD_EIO; 22 is NBD_EINVAL.
  uint32_t status_error = 0;              // What a question for extents gets; 0: an answer.

  static constexpr uint64_t kDirtyBlock = 64 << 10;
};

class NbdServer {
 public:
  static absl::StatusOr<std::unique_ptr<NbdServer>> Start(const std::string& socket_path,
                                                          std::vector<NbdExport> exports);
  // Disconnects everybody.
  ~NbdServer();

  // Until told otherwise, all reads get their export's read_error.
  void FailReads(bool fail) { failing_ = fail; }

 private:
  NbdServer(OwnedFd listening, std::vector<NbdExport> exports)
      : listening_(std::move(listening)), exports_(std::move(exports)) {}
  void AcceptLoop();

  const OwnedFd listening_;
  const std::vector<NbdExport> exports_;
  std::atomic<bool> stopping_ = false;
  std::atomic<bool> failing_ = false;
  absl::Mutex mutex_;
  std::vector<std::shared_ptr<OwnedFd>> connections_ ABSL_GUARDED_BY(mutex_);  // Shared with their threads.
  std::vector<std::thread> threads_ ABSL_GUARDED_BY(mutex_);
  std::thread acceptor_;
};

}  // namespace still::testing
