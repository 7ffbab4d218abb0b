// The programs themselves, freezing everything they see: still-agent killed at the worst moment, and compared with
// Debian's qemu-ga over the same mount table.
#include <fcntl.h>
#include <grpcpp/create_channel_posix.h>
#include <grpcpp/grpcpp.h>
#include <signal.h>
#include <sys/socket.h>

#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/process.h"
#include "base/unix_socket.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/guest.grpc.pb.h"
#include "tests/kernel/guest-agent/cell.h"
#include "tests/unit/guest-agent/fakes.h"

namespace still::agent {
namespace {

using ::testing::HasSubstr;

constexpr char kQga[] = "/usr/sbin/qemu-ga";

class AgentCellTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string skip_reason;
    sandbox_ = Sandbox::Make(skip_reason);
    if (sandbox_ == nullptr) GTEST_SKIP() << skip_reason;
    cell_ = std::make_unique<Cell>(*sandbox_);
  }
  void TearDown() override {
    stub_.reset();
    cell_.reset();
    sandbox_.reset();
  }

  void StartAgent() {
    cell_->Install(STILL_AGENT);
    cell_->Start({STILL_AGENT, "--listen", "unix:/run/agent.sock"});
  }
  // Connects and calls Init; again after the agent was restarted.
  void Connect() {
    stub_.reset();
    absl::StatusOr<OwnedFd> fd;
    ASSERT_TRUE(Eventually([&] {
      fd = ConnectUnix(cell_->Path("/run/agent.sock"));
      return fd.ok();
    })) << fd.status();
    ASSERT_EQ(::fcntl(fd->get(), F_SETFL, O_NONBLOCK), 0);
    stub_ = pb::Guest::NewStub(grpc::CreateInsecureChannelFromFd("cell", fd->Release()));
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
    grpc::Status status = stub_->Init(&context, {}, &init_);
    ASSERT_TRUE(status.ok()) << status.error_message();
  }
  pb::QuiesceResponse Quiesce(const std::string& token) {
    grpc::ClientContext context, renew_context;
    pb::QuiesceRequest request;
    request.set_token(token);
    request.set_lease_ms(60000);
    pb::QuiesceResponse response;
    grpc::Status status = stub_->Quiesce(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    pb::RenewQuiesceRequest renew;
    renew.set_token(token);
    pb::RenewQuiesceResponse renewed;
    EXPECT_TRUE(stub_->RenewQuiesce(&renew_context, renew, &renewed).ok());
    return response;
  }
  pb::ThawResponse Thaw(const std::string& token) {
    grpc::ClientContext context;
    pb::ThawRequest request;
    request.set_token(token);
    pb::ThawResponse response;
    grpc::Status status = stub_->Thaw(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }

  std::unique_ptr<Sandbox> sandbox_;
  std::unique_ptr<Cell> cell_;
  std::unique_ptr<pb::Guest::Stub> stub_;
  pb::InitResponse init_;
};

TEST_F(AgentCellTest, AnAgentKilledWhileFrozenIsReplacedAndTheGuestThawed) {
  sandbox_->MountNew("ext4", "a.img", "root/a");
  StartAgent();
  ASSERT_NO_FATAL_FAILURE(Connect());
  EXPECT_EQ(Quiesce("t").frozen_size(), 1);
  ASSERT_TRUE(IsFrozen(cell_->Path("/a")));
  pid_t agent = cell_->ChildOf(cell_->pid());
  ASSERT_NE(agent, 0);
  ASSERT_EQ(::kill(agent, SIGKILL), 0);
  EXPECT_TRUE(Eventually([&] { return !IsFrozen(cell_->Path("/a")); }));
  // The new agent knows what became of it.
  ASSERT_NO_FATAL_FAILURE(Connect());
  EXPECT_EQ(init_.quiesce_state(), pb::THAWED);
  EXPECT_EQ(Thaw("t").cause(), pb::AGENT_RESTARTED);
  EXPECT_EQ(Quiesce("u").frozen_size(), 1);
  EXPECT_EQ(Thaw("u").thawed(), 1u);
}

TEST_F(AgentCellTest, AnAgentToldToStopWhileFrozenThawsFirst) {
  sandbox_->MountNew("ext4", "a.img", "root/a");
  StartAgent();
  ASSERT_NO_FATAL_FAILURE(Connect());
  EXPECT_EQ(Quiesce("t").frozen_size(), 1);
  ASSERT_TRUE(IsFrozen(cell_->Path("/a")));
  ASSERT_EQ(::kill(cell_->pid(), SIGTERM), 0);
  EXPECT_TRUE(Eventually([&] { return !IsRunning(cell_->pid()); }));
  EXPECT_FALSE(IsFrozen(cell_->Path("/a")));
}

class QgaDifferentialTest : public AgentCellTest {
 protected:
  void SetUp() override {
    AgentCellTest::SetUp();
    if (IsSkipped()) return;
    if (!PathExists(kQga)) GTEST_SKIP() << "needs qemu-guest-agent";
    // Order of mounting matters to both.
    sandbox_->MountNew("ext4", "ext4.img", "root/ext4");
    sandbox_->MountNew("xfs", "xfs.img", "root/xfs");
    sandbox_->MountNew("ext4", "inner.img", "root/with space", "loop");
    sandbox_->MountNew("btrfs", "btrfs.img", "root/btrfs");
    sandbox_->MountNew("ext4", "ro.img", "root/ro", "loop,ro");
    for (const char* name : {"root/bind", "root/ext4/u", "root/ext4/w", "root/lower", "root/overlay"}) {
      sandbox_->MakeDirectory(name);
    }
    sandbox_->Mount({"--bind", cell_->Path("/ext4"), cell_->Path("/bind")});
    sandbox_->Mount({"-t", "overlay", "overlay", "-o",
                     absl::StrCat("lowerdir=", cell_->Path("/lower"), ",upperdir=", cell_->Path("/ext4/u"),
                                  ",workdir=", cell_->Path("/ext4/w")),
                     cell_->Path("/overlay")});
    cell_->AddLoopDevices();
  }

  std::set<std::string> FrozenNow() {
    std::set<std::string> frozen;
    for (const char* name : {"/ext4", "/xfs", "/with space", "/btrfs", "/ro", "/bind", "/overlay"}) {
      if (IsFrozen(cell_->Path(name))) frozen.insert(name);
    }
    return frozen;
  }
  // Sends a command and gives the number that it returns.
  int Qga(int socket_fd, const std::string& command) {
    std::string line = absl::StrCat("{\"execute\":\"", command, "\"}\n");
    EXPECT_TRUE(WriteAll(socket_fd, line.data(), line.size(), "qemu-ga").ok());
    std::string answer;
    while (!absl::EndsWith(answer, "\n")) {
      char byte;
      if (!WaitReadable(socket_fd, absl::Seconds(20), "qemu-ga").ok() || ::recv(socket_fd, &byte, 1, 0) != 1) break;
      answer += byte;
    }
    absl::string_view text = answer;
    int number = -1;
    EXPECT_TRUE(absl::ConsumePrefix(&text, "{\"return\": ") &&
                absl::SimpleAtoi(absl::StripSuffix(absl::StripAsciiWhitespace(text), "}"), &number))
        << answer;
    return number;
  }
};

TEST_F(QgaDifferentialTest, BothFreezeTheSameFileSystems) {
  cell_->Install(kQga);
  cell_->Start({kQga, "--method=unix-listen", "--path=/run/qga.sock", "--statedir=/run"});
  absl::StatusOr<OwnedFd> qga;
  ASSERT_TRUE(Eventually([&] {
    qga = ConnectUnix(cell_->Path("/run/qga.sock"));
    return qga.ok();
  }));
  int qga_frozen = Qga(qga->get(), "guest-fsfreeze-freeze");
  std::set<std::string> frozen_by_qga = FrozenNow();
  EXPECT_EQ(Qga(qga->get(), "guest-fsfreeze-thaw"), qga_frozen);
  EXPECT_TRUE(FrozenNow().empty());
  cell_->Kill();
  sandbox_->Alive();

  StartAgent();
  ASSERT_NO_FATAL_FAILURE(Connect());
  pb::QuiesceResponse frozen = Quiesce("t");
  std::set<std::string> frozen_by_us = FrozenNow();
  EXPECT_EQ(Thaw("t").thawed(), static_cast<uint32_t>(frozen.frozen_size()));
  EXPECT_TRUE(FrozenNow().empty());

  // The one difference: qemu-ga also freezes what is read-only anyway, and counts it.
  std::set<std::string> expected = frozen_by_us;
  expected.insert("/ro");
  EXPECT_EQ(frozen_by_qga, expected);
  EXPECT_EQ(qga_frozen, frozen.frozen_size() + 1);
  EXPECT_EQ(frozen_by_us, (std::set<std::string>{"/bind", "/btrfs", "/ext4", "/with space", "/xfs"}));
}

}  // namespace
}  // namespace still::agent
