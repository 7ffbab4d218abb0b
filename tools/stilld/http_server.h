// HttpServer: metrics and the status page, on a loopback address only, read-only. The HTTP itself is civetweb's.
#pragma once

#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/status.h"
#include "schedule/supervisor.h"
#include "tools/stilld/metrics.h"

struct mg_connection;
struct mg_context;

namespace still::daemon {

class HttpServer {
 public:
  // "127.0.0.1:9841", "[::1]:9841"; port 0: any. INVALID_ARGUMENT for an address that others can reach. `supervisor`
  // must outlive it.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(const std::string& address,
                                                           schedule::Supervisor& supervisor);
  ~HttpServer();
  // With the port that was taken.
  const std::string& address() const { return address_; }

 private:
  explicit HttpServer(schedule::Supervisor& supervisor) : supervisor_(supervisor) {}
  static int Handle(mg_connection* connection, void* self);
  int Answer(mg_connection* connection) ABSL_LOCKS_EXCLUDED(mutex_);

  schedule::Supervisor& supervisor_;
  std::string address_;
  mg_context* context_ = nullptr;
  CountedStats stats_;
  absl::Mutex mutex_;
  Metrics metrics_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace still::daemon
