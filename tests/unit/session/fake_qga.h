// FakeQga: answers on its end of a port as qemu-ga does, from a thread of its own.
#pragma once

#include <unistd.h>

#include <functional>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/fd.h"
#include "nlohmann/json.hpp"

namespace still::testing {

class FakeQga {
 public:
  // `answer` to each command but guest-sync-delimited; what is not JSON is dropped, as by the real one.
  FakeQga(OwnedFd port, std::function<std::string(const std::string& command)> answer)
      : port_(std::move(port)), answer_(std::move(answer)), thread_([this] { Serve(); }) {}
  // The other end must have been closed.
  ~FakeQga() { thread_.join(); }

 private:
  void Serve() {
    std::string line;
    char byte;
    while (::read(port_.get(), &byte, 1) == 1) {
      if (byte == '\xff') {
        line.clear();
      } else if (byte != '\n') {
        line += byte;
      } else {
        Answer(nlohmann::json::parse(std::exchange(line, ""), nullptr, /*allow_exceptions=*/false));
      }
    }
  }
  void Answer(const nlohmann::json& request) {
    if (!request.is_object()) return;
    const std::string command = request.value("execute", "");
    const std::string text = command == "guest-sync-delimited"
                                 ? absl::StrCat("\xff{\"return\": ", request["arguments"]["id"].dump(), "}\n")
                                 : answer_(command);
    for (size_t done = 0; done < text.size();) {
      const ssize_t wrote = ::write(port_.get(), text.data() + done, text.size() - done);
      if (wrote <= 0) return;
      done += static_cast<size_t>(wrote);
    }
  }

  const OwnedFd port_;
  const std::function<std::string(const std::string&)> answer_;
  std::thread thread_;
};

}  // namespace still::testing
