// The disk server's process is kept running, with a program that behaves as each test wants in the place of nbdkit.
#include "session/disk_server.h"

#include <gmock/gmock.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/unix_socket.h"

namespace still::session {
namespace {

using ::testing::HasSubstr;

// Greets everybody; notes its pid and the secret that it was given.
constexpr char kServer[] = R"(
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
listening = socket.socket(fileno=number("--listen-fd"))
kept = []
while True:
    connection, _ = listening.accept()
    try: connection.sendall(b"NBDMAGICIHAVEOPT")
    except OSError: continue  # Who asked an earlier run has left.
    kept.append(connection)
)";

class DiskServerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = "/tmp/still-disk-server-test-XXXXXX";
    ASSERT_NE(::mkdtemp(directory_.data()), nullptr);
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(directory_).ok()); }

  std::string Path(const std::string& name) const { return JoinPath(directory_, name); }
  DiskServer::Options Options() {
    return {.command = {"python3", "-c", kServer, directory_}, .socket_path = Path("disks.sock")};
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

TEST_F(DiskServerTest, ServesWhenStartReturnsAndEndsWithTheObject) {
  auto server = DiskServer::Start(Options());
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_TRUE((*server)->serving());
  const pid_t pid = Pid();
  EXPECT_EQ(::kill(pid, 0), 0);
  server->reset();
  EXPECT_NE(::kill(pid, 0), 0);
  EXPECT_FALSE(PathExists(Path("disks.sock")));
}

TEST_F(DiskServerTest, AProgramThatCannotServeIsAnErrorWithItsLastWords) {
  Fail(true);
  auto server = DiskServer::Start(Options());
  EXPECT_TRUE(absl::IsFailedPrecondition(server.status())) << server.status();
  EXPECT_THAT(server.status().message(), HasSubstr("the repository is away"));
  auto missing = DiskServer::Start({.command = {Path("no-such-program")}, .socket_path = Path("disks.sock")});
  EXPECT_THAT(missing.status().message(), HasSubstr("no-such-program"));
}

TEST_F(DiskServerTest, WhenItDiesItIsStartedAgainAndWhoConnectsMeanwhileWaits) {
  auto server = DiskServer::Start(Options());
  ASSERT_TRUE(server.ok()) << server.status();
  const pid_t first = Pid();
  ASSERT_EQ(::kill(first, SIGKILL), 0);
  ASSERT_TRUE(Within(absl::Seconds(20), [&] { return ::kill(first, 0) != 0; })) << "else it may still accept";
  auto client = ConnectUnix(Path("disks.sock"));
  ASSERT_TRUE(client.ok()) << client.status();
  EXPECT_TRUE(WaitReadable(client->get(), absl::Seconds(20), "greeting").ok());
  EXPECT_NE(Pid(), first);
  EXPECT_TRUE(Within(absl::Seconds(20), [&] { return (*server)->serving(); }));
}

TEST_F(DiskServerTest, ARestartSaysWhyItFailedAndLaterThatItWorks) {
  auto server = DiskServer::Start(Options());
  ASSERT_TRUE(server.ok()) << server.status();
  Fail(true);
  absl::Status failed = (*server)->Restart();
  EXPECT_THAT(failed.message(), HasSubstr("the repository is away"));
  EXPECT_FALSE((*server)->serving());
  Fail(false);
  absl::Status back = (*server)->Restart();
  EXPECT_TRUE(back.ok()) << back;
  EXPECT_EQ((*server)->last_error(), "");
}

TEST_F(DiskServerTest, TheSecretReachesEveryRun) {
  DiskServer::Options options = Options();
  options.secret = OwnedFd(::memfd_create("secret", MFD_CLOEXEC));
  ASSERT_TRUE(WriteAll(options.secret.get(), "horse", 5, "secret").ok());
  auto server = DiskServer::Start(std::move(options));
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_EQ(ReadFile(Path("secret"), 100).value_or(""), "horse");
  ASSERT_TRUE(RemoveFile(Path("secret")).ok());
  ASSERT_TRUE((*server)->Restart().ok());
  EXPECT_EQ(ReadFile(Path("secret"), 100).value_or(""), "horse");
}

}  // namespace
}  // namespace still::session
