// A QMP server that says what the test tells it to.
#pragma once

#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "base/fd.h"
#include "base/unix_socket.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace still::testing {

class FakeQmpServer {
 public:
  static constexpr char kGreeting[] = R"({"QMP": {"version": {"qemu": {"major": 7}}, "capabilities": []}})";

  // `answer` gives the lines that answer a command (with "@ID" for its id); "" closes the connection.
  using Answer = std::function<std::vector<std::string>(const nlohmann::json& command)>;

  explicit FakeQmpServer(Answer answer, std::string greeting = kGreeting) : answer_(std::move(answer)) {
    auto pair = MakeSocketPair();
    EXPECT_TRUE(pair.ok());
    client_ = std::move(pair->first);
    server_ = std::move(pair->second);
    thread_ = std::thread([this, greeting] {
      if (!greeting.empty()) Say(greeting);
      Serve();
    });
  }
  ~FakeQmpServer() {
    ::shutdown(server_.get(), SHUT_RDWR);
    thread_.join();
  }

  OwnedFd TakeClient() { return std::move(client_); }
  void Say(const std::string& line) {
    std::string text = line + "\r\n";
    size_t at = 0;
    while (at < text.size()) {
      ssize_t sent = ::send(server_.get(), text.data() + at, text.size() - at, MSG_NOSIGNAL);
      if (sent <= 0) return;
      at += static_cast<size_t>(sent);
    }
  }
  void HangUp() { ::shutdown(server_.get(), SHUT_RDWR); }
  // The descriptor that came with a command, or -1.
  int received_fd() const { return received_fd_.get(); }

 private:
  void Serve() {
    std::string buffer;
    for (;;) {
      char chunk[4096];
      alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
      iovec part{.iov_base = chunk, .iov_len = sizeof chunk};
      msghdr message{};
      message.msg_iov = &part;
      message.msg_iovlen = 1;
      message.msg_control = control;
      message.msg_controllen = sizeof control;
      ssize_t got = ::recvmsg(server_.get(), &message, MSG_CMSG_CLOEXEC);
      if (got <= 0) return;
      if (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr) {
        int fd;
        std::memcpy(&fd, CMSG_DATA(header), sizeof fd);
        received_fd_ = OwnedFd(fd);
      }
      buffer.append(chunk, static_cast<size_t>(got));
      for (size_t end; (end = buffer.find('\n')) != std::string::npos; buffer.erase(0, end + 1)) {
        nlohmann::json command = nlohmann::json::parse(buffer.substr(0, end), nullptr, false);
        ASSERT_TRUE(command.is_object());
        for (std::string line : Answers(command)) {
          if (line.empty()) return HangUp();
          if (size_t at = line.find("@ID"); at != std::string::npos) line.replace(at, 3, command["id"].dump());
          Say(line);
        }
      }
    }
  }
  std::vector<std::string> Answers(const nlohmann::json& command) {
    if (command["execute"] == "qmp_capabilities") return {R"({"return": {}, "id": @ID})"};
    return answer_(command);
  }

  const Answer answer_;
  OwnedFd client_;
  OwnedFd server_;
  OwnedFd received_fd_;
  std::thread thread_;
};

}  // namespace still::testing
