// A connection to an NBD server, for tests: libnbd (libnbd(3)) with statuses.
#pragma once

#include <libnbd.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"

namespace still::testing {

class NbdClient {
 public:
  static absl::StatusOr<std::unique_ptr<NbdClient>> Connect(const std::string& socket, const std::string& export_name);
  // Name -> description.
  static absl::StatusOr<std::map<std::string, std::string>> List(const std::string& socket);
  ~NbdClient();

  uint64_t size() const;
  bool read_only() const;
  bool can_multi_conn() const;
  uint64_t preferred_block() const;
  absl::StatusOr<std::string> Read(uint64_t offset, size_t size);
  absl::Status Prefetch(uint64_t offset, size_t size);
  // One letter for each 4 KiB of the image: 'z' zero and hole, 'd' data.
  absl::StatusOr<std::string> Map();

 private:
  explicit NbdClient(nbd_handle* handle) : handle_(handle) {}
  nbd_handle* handle_;
};

}  // namespace still::testing
