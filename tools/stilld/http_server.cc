#include "tools/stilld/http_server.h"

#include <civetweb.h>

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "tools/stilld/figures.h"
#include "tools/stilld/status_page.h"

namespace still::daemon {
namespace {

constexpr absl::string_view kLoopback[] = {"127.0.0.1", "localhost", "[::1]"};

// The name before the port of "name:port".
absl::string_view HostOf(absl::string_view address) {
  size_t colon = address.rfind(':');
  size_t bracket = address.rfind(']');
  if (colon == absl::string_view::npos || (bracket != absl::string_view::npos && colon < bracket)) return address;
  return address.substr(0, colon);
}

bool IsLoopback(absl::string_view host) {
  return std::find(std::begin(kLoopback), std::end(kLoopback), host) != std::end(kLoopback);
}

int Send(mg_connection* connection, int code, const char* reason, const char* type, const std::string& body) {
  ::mg_printf(connection,
              "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\nConnection: close\r\n"
              "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n"
              "Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'\r\n\r\n",
              code, reason, type, body.size());
  ::mg_write(connection, body.data(), body.size());
  return code;
}

}  // namespace

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(const std::string& address,
                                                              schedule::Supervisor& supervisor) {
  const std::string host(HostOf(address));
  if (!IsLoopback(host) || host.size() == address.size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "http address \"", address, "\": write it like 127.0.0.1:9841; other hosts are let in by a proxy"));
  }
  const std::string listen = host == "localhost" ? absl::StrCat("127.0.0.1", address.substr(host.size())) : address;
  std::unique_ptr<HttpServer> server(new HttpServer(supervisor));
  const char* options[] = {"listening_ports", listen.c_str(),      "num_threads", "2",    "request_timeout_ms",
                           "10000",           "enable_keep_alive", "no",          nullptr};
  mg_callbacks callbacks{};
  ::mg_init_library(0);
  server->context_ = ::mg_start(&callbacks, nullptr, options);
  if (server->context_ == nullptr) {
    return absl::FailedPreconditionError(absl::StrCat("cannot listen on ", listen, "; is the port taken?"));
  }
  mg_server_port port{};
  if (::mg_get_server_ports(server->context_, 1, &port) == 1) {
    server->address_ = absl::StrCat(HostOf(listen), ":", port.port);
  }
  ::mg_set_request_handler(server->context_, "/", &HttpServer::Handle, server.get());
  return server;
}

HttpServer::~HttpServer() {
  if (context_ != nullptr) ::mg_stop(context_);  // Waits for requests under way.
}

int HttpServer::Handle(mg_connection* connection, void* self) {
  return static_cast<HttpServer*>(self)->Answer(connection);
}

int HttpServer::Answer(mg_connection* connection) {
  const mg_request_info* request = ::mg_get_request_info(connection);
  const char* host = ::mg_get_header(connection, "Host");
  // A page of somebody else's in the browser of this host may make its name mean our address, but cannot hide its name.
  if (host == nullptr || !IsLoopback(HostOf(host))) {
    return Send(connection, 403, "Forbidden", "text/plain", "by another name\n");
  }
  if (absl::string_view(request->request_method) != "GET") {
    return Send(connection, 405, "Method Not Allowed", "text/plain", "only GET\n");
  }
  const absl::string_view path = request->local_uri == nullptr ? "" : request->local_uri;
  if (path != "/" && path != "/metrics") return Send(connection, 404, "Not Found", "text/plain", "/ or /metrics\n");
  absl::StatusOr<Figures> figures = GatherFigures(supervisor_, stats_);
  if (!figures.ok()) {
    LogWarning("figures cannot be read", {{"error", figures.status().ToString()}});
    return Send(connection, 503, "Service Unavailable", "text/plain", absl::StrCat(figures.status().message(), "\n"));
  }
  if (path == "/") return Send(connection, 200, "OK", "text/html; charset=utf-8", RenderStatusPage(*figures));
  absl::MutexLock lock(&mutex_);
  return Send(connection, 200, "OK", "text/plain; version=0.0.4; charset=utf-8", metrics_.Render(*figures));
}

}  // namespace still::daemon
