// A directory with a disk server of a few lines of Python in the place of nbdkit, which behaves as files there say:
// `fail` (it ends at once, with an error) and `unread` (it says that a read has failed).
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <functional>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/file.h"
#include "session/disk_server.h"

namespace still::testing {

// Greets everybody; notes its pid and the secret that it was given.
inline constexpr char kDiskServer[] = R"(
import os, socket, sys
here, words = sys.argv[1], sys.argv[2:]
def number(name): return int(words[words.index(name) + 1])
if "--passphrase-fd" in words:
    with open(here + "/secret", "wb") as out: out.write(os.pread(number("--passphrase-fd"), 100, 0))
with open(here + "/pid.new", "w") as out: out.write(str(os.getpid()))
os.rename(here + "/pid.new", here + "/pid")
if os.path.exists(here + "/fail"):
    print("nbdkit: still[1]: error: the repository is away", file=sys.stderr)
    sys.exit(1)
if os.path.exists(here + "/unread"): print("nbdkit: still[1]: error: cannot read bytes 1 to 2: gone", file=sys.stderr)
listening = socket.socket(fileno=number("--listen-fd"))
kept = []
while True:
    connection, _ = listening.accept()
    try: connection.sendall(b"NBDMAGICIHAVEOPT")
    except OSError: continue  # Who asked an earlier run has left.
    kept.append(connection)
)";

class DiskServerFixture : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = "/tmp/still-disk-server-test-XXXXXX";
    ASSERT_NE(::mkdtemp(directory_.data()), nullptr);
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(directory_).ok()); }

  std::string Path(const std::string& name) const { return JoinPath(directory_, name); }
  session::DiskServer::Options Options() {
    return {.command = {"python3", "-c", kDiskServer, directory_}, .socket_path = Path("disks.sock")};
  }
  pid_t Pid() const {
    int pid = -1;
    EXPECT_TRUE(absl::SimpleAtoi(ReadFile(Path("pid"), 32).value_or(""), &pid));
    return pid;
  }
  void Fail(bool on) {
    absl::Status done = on ? WriteFileAtomically(Path("fail"), "") : RemoveFile(Path("fail"));
    ASSERT_TRUE(done.ok()) << done;
  }
  static bool Within(absl::Duration limit, const std::function<bool()>& condition) {
    const absl::Duration deadline = Clock::Real().Monotonic() + limit;
    while (!condition()) {
      if (Clock::Real().Monotonic() > deadline) return false;
      Clock::Real().Sleep(absl::Milliseconds(10));
    }
    return true;
  }

  std::string directory_;
};

}  // namespace still::testing
