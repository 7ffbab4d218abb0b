#include "tests/contract/nbdkit/nbd_client.h"

#include <algorithm>

namespace still::testing {
namespace {

constexpr uint64_t kUnit = 4096;

absl::Status LastError() {
  const int error_number = nbd_get_errno();
  return ErrnoStatus(error_number, nbd_get_error());
}

}  // namespace

absl::StatusOr<std::unique_ptr<NbdClient>> NbdClient::Connect(const std::string& socket,
                                                              const std::string& export_name) {
  std::unique_ptr<NbdClient> client(new NbdClient(nbd_create()));
  nbd_handle* handle = client->handle_;
  if (nbd_set_export_name(handle, export_name.c_str()) != 0 || nbd_add_meta_context(handle, "base:allocation") != 0 ||
      nbd_connect_unix(handle, socket.c_str()) != 0) {
    return LastError();
  }
  return client;
}

NbdClient::~NbdClient() {
  if (nbd_aio_is_ready(handle_) == 1) nbd_shutdown(handle_, 0);
  nbd_close(handle_);
}

absl::StatusOr<std::map<std::string, std::string>> NbdClient::List(const std::string& socket) {
  NbdClient client(nbd_create());
  std::map<std::string, std::string> exports;
  auto keep = [](void* user, const char* name, const char* description) {
    (*static_cast<std::map<std::string, std::string>*>(user))[name] = description;
    return 0;
  };
  if (nbd_set_opt_mode(client.handle_, true) != 0 || nbd_connect_unix(client.handle_, socket.c_str()) != 0 ||
      nbd_opt_list(client.handle_, {.callback = keep, .user_data = &exports, .free = nullptr}) < 0) {
    return LastError();
  }
  nbd_opt_abort(client.handle_);
  return exports;
}

uint64_t NbdClient::size() const { return static_cast<uint64_t>(nbd_get_size(handle_)); }
bool NbdClient::read_only() const { return nbd_is_read_only(handle_) == 1; }
bool NbdClient::can_multi_conn() const { return nbd_can_multi_conn(handle_) == 1; }
uint64_t NbdClient::preferred_block() const {
  return static_cast<uint64_t>(nbd_get_block_size(handle_, LIBNBD_SIZE_PREFERRED));
}

absl::StatusOr<std::string> NbdClient::Read(uint64_t offset, size_t size) {
  std::string out(size, 'x');
  if (nbd_pread(handle_, out.data(), size, offset, 0) != 0) return LastError();
  return out;
}

absl::Status NbdClient::Prefetch(uint64_t offset, size_t size) {
  return nbd_cache(handle_, size, offset, 0) == 0 ? absl::OkStatus() : LastError();
}

absl::StatusOr<std::string> NbdClient::Map() {
  std::string map;
  struct Found {
    std::string& map;
    uint64_t at;
    uint64_t end;
  };
  auto keep = [](void* user, const char*, uint64_t, uint32_t* entries, size_t count, int*) {
    auto& found = *static_cast<Found*>(user);
    for (size_t i = 0; i + 1 < count; i += 2) {
      const uint64_t next = std::min(found.end, found.at + entries[i]);
      const uint64_t units = (next + kUnit - 1) / kUnit - (found.at + kUnit - 1) / kUnit;
      found.map.append(units, (entries[i + 1] & LIBNBD_STATE_ZERO) != 0 ? 'z' : 'd');
      found.at = next;
    }
    return 0;
  };
  for (uint64_t at = 0; at < size();) {
    Found found{.map = map, .at = at, .end = size()};
    const uint64_t ask = std::min<uint64_t>(size() - at, 1 << 30);
    if (nbd_block_status(handle_, ask, at, {.callback = keep, .user_data = &found, .free = nullptr}, 0) != 0) {
      return LastError();
    }
    if (found.at == at) return absl::InternalError("the server told nothing");
    at = found.at;
  }
  return map;
}

}  // namespace still::testing
