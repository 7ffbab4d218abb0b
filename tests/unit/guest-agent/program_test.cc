// The program itself, as it is put into guests. It is never asked to freeze here: it would freeze this machine.
#include <fcntl.h>
#include <grpcpp/create_channel_posix.h>
#include <grpcpp/grpcpp.h>
#include <signal.h>

#include "absl/strings/str_cat.h"
#include "base/process.h"
#include "base/unix_socket.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/guest.grpc.pb.h"
#include "tests/unit/guest-agent/fakes.h"

namespace still::agent {
namespace {

using ::testing::HasSubstr;

class ProgramTest : public ::testing::Test {
 protected:
  void StartAgent(std::vector<std::string> more = {}) {
    auto listening = ListenUnix(directory_ / "host.sock");
    ASSERT_TRUE(listening.ok()) << listening.status();
    listening_ = *std::move(listening);
    ProcessOptions options;
    options.argv = {STILL_AGENT,          "--connect",           absl::StrCat("unix:", directory_ / "host.sock"),
                    "--marker",           directory_ / "frozen", "--hooks",
                    directory_ / "hooks", "--qemu-hooks",        directory_ / "qemu"};
    for (std::string& argument : more) options.argv.push_back(std::move(argument));
    options.end_with_parent = true;
    auto agent = ChildProcess::Start(options);
    ASSERT_TRUE(agent.ok()) << agent.status();
    agent_ = std::make_unique<ChildProcess>(*std::move(agent));
  }
  void TearDown() override {
    if (agent_ == nullptr) return;
    ASSERT_TRUE(agent_->Kill(SIGTERM).ok());
    auto exit = agent_->Wait(absl::Seconds(20));
    ASSERT_TRUE(exit.ok()) << exit.status();
    EXPECT_EQ(exit->ToString(), "exit code 0");
  }
  // Accepts the agent's connection and calls Init on it.
  pb::InitResponse Accept() {
    pb::InitResponse response;
    auto fd = AcceptWithin(listening_.get(), absl::Seconds(20), "agent");
    EXPECT_TRUE(fd.ok()) << fd.status();
    if (!fd.ok()) return response;
    ::fcntl(fd->get(), F_SETFL, O_NONBLOCK);
    stub_ = pb::Guest::NewStub(grpc::CreateInsecureChannelFromFd("guest", fd->Release()));
    grpc::ClientContext context;
    grpc::Status status = stub_->Init(&context, {}, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }
  std::string Exec(std::vector<std::string> argv) {
    grpc::ClientContext context;
    pb::ExecRequest request;
    for (std::string& argument : argv) request.add_argv(std::move(argument));
    auto reader = stub_->Exec(&context, request);
    pb::ExecOutput part;
    std::string out;
    while (reader->Read(&part)) out += part.stdout_data();
    return out;
  }

  TempDir directory_;
  OwnedFd listening_;
  std::unique_ptr<ChildProcess> agent_;
  std::unique_ptr<pb::Guest::Stub> stub_;
};

TEST_F(ProgramTest, DialsServesAndDialsAgain) {
  StartAgent({"--no-guardian"});
  pb::InitResponse first = Accept();
  EXPECT_EQ(first.agent_version(), STILL_VERSION);
  EXPECT_THAT(first.boot_id(), ::testing::SizeIs(36));
  EXPECT_EQ(Exec({"echo", "hello"}), "hello\n");
  for (int i = 0; i < 5; ++i) {
    stub_.reset();  // Closes the connection.
    Accept();
    EXPECT_EQ(Exec({"echo", "again"}), "again\n");
  }
}

TEST_F(ProgramTest, AnAgentThatIsKilledIsStartedAgainByItsGuardian) {
  StartAgent();
  Accept();
  // Exec's programs run under the agent itself: its pid is their parent's.
  pid_t agent = std::stoi(Exec({"sh", "-c", "echo $PPID"}));
  ASSERT_NE(agent, agent_->pid());
  ASSERT_EQ(::kill(agent, SIGKILL), 0);
  Accept();
  EXPECT_NE(std::stoi(Exec({"sh", "-c", "echo $PPID"})), agent);
}

TEST_F(ProgramTest, TheKernelCommandLineCanSwitchItOff) {
  auto output = RunCommand({.argv = {STILL_AGENT, "--cmdline", "/dev/null", "--version"}}, absl::Seconds(20));
  ASSERT_TRUE(output.ok());
  EXPECT_EQ(output->stdout_text, "still-agent " STILL_VERSION "\n");
  ASSERT_TRUE(WriteFileAtomically(directory_ / "cmdline", "console=ttyS0 still.agent=off\n").ok());
  output = RunCommand({.argv = {STILL_AGENT, "--cmdline", directory_ / "cmdline"}}, absl::Seconds(20));
  ASSERT_TRUE(output.ok());
  EXPECT_TRUE(output->exit.ok());
}

TEST_F(ProgramTest, AWrongOptionIsNamed) {
  auto output = RunCommand({.argv = {STILL_AGENT, "--bogus"}}, absl::Seconds(20));
  ASSERT_TRUE(output.ok());
  EXPECT_EQ(output->exit.exit_code, 2);
  EXPECT_THAT(output->stderr_text, HasSubstr("--bogus: unknown option"));
}

}  // namespace
}  // namespace still::agent
