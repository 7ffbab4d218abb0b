// The service over a real gRPC channel on a socket pair, with a fake freezer.
#include <fcntl.h>
#include <grpcpp/create_channel_posix.h>
#include <grpcpp/grpcpp.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/unix_socket.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "guest-agent/guest_server.h"
#include "guest-agent/guest_service.h"
#include "tests/unit/guest-agent/fake_guest.h"
#include "tests/unit/guest-agent/fake_identity.h"

namespace still::agent {
namespace {

using ::testing::HasSubstr;

class FakePower : public Power {
 public:
  void Off(bool reboot) override { asked = reboot ? "reboot" : "off"; }
  std::string asked;
};

class ServiceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto server = GuestServer::Start(service_);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  void TearDown() override {
    Disconnect();
    server_.reset();
  }

  // A new connection; the old one ends.
  void Connect() {
    Disconnect();
    auto pair = MakeSocketPair();
    ASSERT_TRUE(pair.ok());
    for (int fd : {pair->first.get(), pair->second.get()}) ASSERT_EQ(::fcntl(fd, F_SETFL, O_NONBLOCK), 0);
    auto host_side = pair->second.Duplicate();
    ASSERT_TRUE(host_side.ok());
    host_side_ = *std::move(host_side);
    serving_ = std::thread([this, fd = pair->first.Release()] { (void)server_->Serve(OwnedFd(fd), stop_.get()); });
    stub_ = pb::Guest::NewStub(grpc::CreateInsecureChannelFromFd("guest", pair->second.Release()));
  }
  // As when the host dies: its end closes without a word.
  void Disconnect() {
    if (host_side_.valid()) ::shutdown(host_side_.get(), SHUT_RDWR);
    host_side_.Reset();
    if (serving_.joinable()) serving_.join();
    stub_.reset();
  }

  grpc::Status Init(const std::string& restore_id = "") {
    grpc::ClientContext context;
    pb::InitRequest request;
    request.set_restore_id(restore_id);
    return stub_->Init(&context, request, &init_);
  }
  void ConnectAndInit() {
    Connect();
    grpc::Status status = Init();
    ASSERT_TRUE(status.ok()) << status.error_message();
  }
  pb::QuiesceState State() {
    grpc::ClientContext context;
    pb::PingResponse response;
    grpc::Status status = stub_->Ping(&context, {}, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response.quiesce_state();
  }
  struct ExecResult {
    grpc::Status status;
    std::string out, err;
    pb::ExecExit exit;
  };
  ExecResult Exec(
      std::vector<std::string> argv, std::function<void(pb::ExecRequest&)> change = [](auto&) {}) {
    grpc::ClientContext context;
    pb::ExecRequest request;
    for (std::string& argument : argv) request.add_argv(std::move(argument));
    change(request);
    auto reader = stub_->Exec(&context, request);
    ExecResult result;
    pb::ExecOutput part;
    while (reader->Read(&part)) {
      result.out += part.stdout_data();
      result.err += part.stderr_data();
      if (part.has_exit()) result.exit = part.exit();
    }
    result.status = reader->Finish();
    return result;
  }

  FakeGuest guest_{OneDisk()};
  FakePower power_;
  FakeIdentityKernel kernel_;
  TempDir root_;
  IdentityAdopter identity_{
      {.kernel = kernel_, .controller = guest_.controller(), .clock = guest_.clock, .root = root_.path()}};
  GuestService service_{guest_.controller(), identity_, power_, Clock::Real()};
  std::unique_ptr<GuestServer> server_;
  OwnedFd stop_{::eventfd(0, EFD_CLOEXEC)};
  OwnedFd host_side_;
  std::thread serving_;
  std::unique_ptr<pb::Guest::Stub> stub_;
  pb::InitResponse init_;
};

TEST_F(ServiceTest, EveryCallBeforeInitIsRefusedOnEachConnectionAnew) {
  for (int round = 0; round < 2; ++round) {
    Connect();
    grpc::ClientContext context;
    pb::PingResponse response;
    EXPECT_EQ(stub_->Ping(&context, {}, &response).error_code(), grpc::StatusCode::FAILED_PRECONDITION);
    EXPECT_EQ(Exec({"true"}).status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
    ASSERT_TRUE(Init().ok());
    EXPECT_EQ(State(), pb::THAWED);
    EXPECT_EQ(init_.protocol_version(), 1u);
  }
}

TEST_F(ServiceTest, PingEchoesAndTellsTheRestoreId) {
  Connect();
  ASSERT_TRUE(Init("restore-7").ok());
  grpc::ClientContext context;
  pb::PingRequest request;
  request.set_payload("hello");
  pb::PingResponse response;
  ASSERT_TRUE(stub_->Ping(&context, request, &response).ok());
  EXPECT_EQ(response.payload(), "hello");
  EXPECT_EQ(response.restore_id(), "restore-7");
  EXPECT_GT(response.monotonic_ns(), 0u);
}

TEST_F(ServiceTest, WhileFrozenOnlyTheCallsAboutTheFreezeAreServed) {
  ConnectAndInit();
  grpc::ClientContext quiesce, shutdown, renew, status_context, thaw;
  pb::QuiesceResponse frozen;
  grpc::Status status = stub_->Quiesce(&quiesce, QuiesceOf("t"), &frozen);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(frozen.frozen_size(), 1);
  EXPECT_EQ(State(), pb::FROZEN);
  pb::ShutdownResponse shutdown_response;
  EXPECT_EQ(stub_->Shutdown(&shutdown, {}, &shutdown_response).error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(Exec({"true"}).status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  pb::RenewQuiesceRequest renew_request;
  renew_request.set_token("t");
  pb::RenewQuiesceResponse renewed;
  EXPECT_TRUE(stub_->RenewQuiesce(&renew, renew_request, &renewed).ok());
  EXPECT_EQ(renewed.remaining_ms(), 5000u);
  pb::QuiesceStatusResponse quiesce_status;
  EXPECT_TRUE(stub_->QuiesceStatus(&status_context, {}, &quiesce_status).ok());
  EXPECT_EQ(quiesce_status.state(), pb::FROZEN);
  pb::ThawRequest thaw_request;
  thaw_request.set_token("t");
  pb::ThawResponse thawed;
  EXPECT_TRUE(stub_->Thaw(&thaw, thaw_request, &thawed).ok());
  EXPECT_EQ(thawed.thawed(), 1u);
  EXPECT_TRUE(Exec({"true"}).status.ok());
}

// Any user of the guest can make such mounts (FUSE), and must not spoil the answer for the rest.
TEST_F(ServiceTest, ManyMountsWhosePathsAreNoTextLeaveTheAnswerShortEnough) {
  std::string path = "/";
  for (int i = 0; i < 900; ++i) path += '\xff';
  for (int i = 0; i < 1200; ++i) {
    guest_.AddMount(absl::StrCat(90001000 + i, " 90000021 0:", 1000 + i, " / ", path, i, " rw - fuse f rw\n"));
  }
  ConnectAndInit();
  grpc::ClientContext context;
  pb::QuiesceResponse frozen;
  grpc::Status status = stub_->Quiesce(&context, QuiesceOf("t"), &frozen);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_LT(frozen.ByteSizeLong(), 2u << 20);
  EXPECT_THAT(frozen.skipped(frozen.skipped_size() - 1).detail(), HasSubstr("more"));
}

// As the host counts: it compares the two numbers.
TEST_F(ServiceTest, ManyFrozenFileSystemsAreAllCountedAndTheAnswersStayShortEnough) {
  constexpr int kMounts = 700;
  std::string path = "/";
  for (int i = 0; i < 900; ++i) path += '\xff';
  for (int i = 0; i < kMounts; ++i) {
    guest_.AddMount(absl::StrCat(90001000 + i, " 90000021 7:", i, " / ", path, i, " rw - ext4 /dev/loop", i, " rw\n"));
  }
  ConnectAndInit();
  grpc::ClientContext quiesce, status_context, thaw;
  pb::QuiesceResponse frozen;
  grpc::Status status = stub_->Quiesce(&quiesce, QuiesceOf("t"), &frozen);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(frozen.frozen_size(), kMounts + 1);
  EXPECT_EQ(guest_.frozen_now(), kMounts + 1);
  EXPECT_LT(frozen.ByteSizeLong(), 2u << 20);
  int told = 0;
  while (!frozen.frozen(told).mount_point().empty()) ++told;
  EXPECT_EQ(frozen.frozen(told - 1).mount_point(), absl::StrCat("and ", kMounts + 2 - told, " more"));
  pb::QuiesceStatusResponse quiesce_status;
  ASSERT_TRUE(stub_->QuiesceStatus(&status_context, {}, &quiesce_status).ok());
  EXPECT_EQ(quiesce_status.frozen_size(), kMounts + 1);
  EXPECT_LT(quiesce_status.ByteSizeLong(), 2u << 20);

  // Somebody else thaws them all.
  for (int i = 0; i < kMounts; ++i) guest_.superblock(absl::StrCat(path, i)).freezes = 0;
  pb::ThawRequest request;
  request.set_token("t");
  pb::ThawResponse thawed;
  ASSERT_TRUE(stub_->Thaw(&thaw, request, &thawed).ok());
  EXPECT_EQ(thawed.thawed(), 1u);
  EXPECT_LT(thawed.ByteSizeLong(), 2u << 20);
  EXPECT_THAT(thawed.thawed_early(thawed.thawed_early_size() - 1), HasSubstr("more"));
}

TEST_F(ServiceTest, AFrozenGuestAdoptsItsIdentityAndRunsOn) {
  ConnectAndInit();
  EXPECT_THAT(init_.features(), ::testing::ElementsAre("identity", "disks"));
  grpc::ClientContext quiesce, adopt;
  pb::QuiesceResponse frozen;
  ASSERT_TRUE(stub_->Quiesce(&quiesce, QuiesceOf("t"), &frozen).ok());
  pb::AdoptIdentityRequest request;
  request.set_restore_id("restore-1");
  request.set_entropy(std::string(32, 'e'));
  pb::AdoptIdentityResponse response;
  grpc::Status status = stub_->AdoptIdentity(&adopt, request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.thaw().thawed(), 1u);
  EXPECT_EQ(State(), pb::THAWED);
}

TEST_F(ServiceTest, ACallCancelledInTheMiddleOfAFreezeThaws) {
  ConnectAndInit();
  guest_.BlockNextFreeze();
  grpc::ClientContext context;
  std::thread canceller([&] {
    guest_.WaitUntilFreezeBlocks();
    context.TryCancel();
    guest_.WaitForState(pb::THAWING);
    guest_.ReleaseFreeze();
  });
  pb::QuiesceResponse response;
  EXPECT_EQ(stub_->Quiesce(&context, QuiesceOf("t"), &response).error_code(), grpc::StatusCode::CANCELLED);
  canceller.join();
  guest_.WaitForState(pb::THAWED);
  EXPECT_EQ(guest_.frozen_now(), 0);
  EXPECT_EQ(guest_.controller().Status().last_thaw_cause(), pb::CLIENT_LOST);
}

TEST_F(ServiceTest, AConnectionLostInTheMiddleOfAFreezeThaws) {
  ConnectAndInit();
  guest_.BlockNextFreeze();
  std::thread loser([&] {
    guest_.WaitUntilFreezeBlocks();
    ::shutdown(host_side_.get(), SHUT_RDWR);
    guest_.WaitForState(pb::THAWING);
    guest_.ReleaseFreeze();
  });
  grpc::ClientContext context;
  pb::QuiesceResponse response;
  EXPECT_FALSE(stub_->Quiesce(&context, QuiesceOf("t"), &response).ok());
  loser.join();
  guest_.WaitForState(pb::THAWED);
  EXPECT_EQ(guest_.frozen_now(), 0);
}

TEST_F(ServiceTest, AnUnconfirmedFreezeEndsWithItsConnectionAndAConfirmedOneDoesNot) {
  for (bool confirm : {false, true}) {
    ConnectAndInit();
    std::string token = confirm ? "confirmed" : "unconfirmed";
    grpc::ClientContext quiesce, renew;
    pb::QuiesceResponse frozen;
    ASSERT_TRUE(stub_->Quiesce(&quiesce, QuiesceOf(token), &frozen).ok());
    if (confirm) {
      pb::RenewQuiesceRequest request;
      request.set_token(token);
      pb::RenewQuiesceResponse renewed;
      ASSERT_TRUE(stub_->RenewQuiesce(&renew, request, &renewed).ok());
    }
    Disconnect();  // Returns when the agent has seen it.
    EXPECT_EQ(guest_.controller().Status().state(), confirm ? pb::FROZEN : pb::THAWED);
  }
  // The host is back: Init tells it, and it thaws without knowing the token.
  ConnectAndInit();
  EXPECT_EQ(init_.quiesce_state(), pb::FROZEN);
  grpc::ClientContext thaw;
  pb::ThawResponse thawed;
  ASSERT_TRUE(stub_->Thaw(&thaw, {}, &thawed).ok());
  EXPECT_EQ(thawed.cause(), pb::REQUESTED);
  EXPECT_EQ(State(), pb::THAWED);
}

TEST_F(ServiceTest, AConnectionThatGrpcGivesUpIsNoticed) {
  auto pair = MakeSocketPair();
  ASSERT_TRUE(pair.ok());
  ASSERT_EQ(::fcntl(pair->first.get(), F_SETFL, O_NONBLOCK), 0);
  // No HTTP/2 preface: gRPC closes its side, and the host's end stays open.
  ASSERT_TRUE(WriteAll(pair->second.get(), "GET / HTTP/1.0\r\n\r\n........", 26, "garbage").ok());
  auto ended = server_->Serve(std::move(pair->first), stop_.get());
  ASSERT_TRUE(ended.ok());
  EXPECT_TRUE(*ended);
}

TEST_F(ServiceTest, ExecStreamsBothOutputsAndTheExitCode) {
  ConnectAndInit();
  ExecResult result = Exec({"sh", "-c", "cat; echo err >&2; echo $X; pwd; exit 7"}, [](pb::ExecRequest& request) {
    request.set_stdin_data("from stdin\n");
    (*request.mutable_env())["X"] = "variable";
    request.set_working_directory("/usr");
  });
  ASSERT_TRUE(result.status.ok()) << result.status.error_message();
  EXPECT_EQ(result.out, "from stdin\nvariable\n/usr\n");
  EXPECT_EQ(result.err, "err\n");
  EXPECT_EQ(result.exit.exit_code(), 7);
}

TEST_F(ServiceTest, ExecMovesMoreThanAnyPipeHoldsBothWays) {
  ConnectAndInit();
  std::string data(1 << 20, 'x');
  ExecResult result = Exec({"cat"}, [&](pb::ExecRequest& request) { request.set_stdin_data(data); });
  ASSERT_TRUE(result.status.ok());
  EXPECT_TRUE(result.out == data);
}

TEST_F(ServiceTest, ExecErrorsAreToldApart) {
  ConnectAndInit();
  EXPECT_EQ(Exec({"no-such-program-anywhere"}).status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(Exec({}).status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(Exec(std::vector<std::string>(257, "a")).status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(Exec({"sh", "-c", "kill -9 $$"}).exit.signal(), 9);
}

TEST_F(ServiceTest, ExecTimeOutKillsTheWholeGroup) {
  ConnectAndInit();
  // The background sleep keeps the pipes: were it not killed, its pid would be alive below.
  ExecResult result =
      Exec({"sh", "-c", "sleep 1000 & echo $!; wait"}, [](pb::ExecRequest& r) { r.set_timeout_ms(300); });
  ASSERT_TRUE(result.status.ok()) << result.status.error_message();
  EXPECT_TRUE(result.exit.timed_out());
  EXPECT_EQ(result.exit.signal(), 9);
  pid_t background = std::stoi(result.out);
  EXPECT_TRUE(Eventually([&] { return !IsRunning(background); }));
}

TEST_F(ServiceTest, ExecEndsWithItsProgramThoughABackgroundProcessKeepsThePipes) {
  ConnectAndInit();
  ExecResult result = Exec({"sh", "-c", "sleep 1000 & echo $!"});
  ASSERT_TRUE(result.status.ok());
  pid_t background = std::stoi(result.out);
  EXPECT_TRUE(IsRunning(background));
  ::kill(background, SIGKILL);
}

TEST_F(ServiceTest, ACancelledExecKillsTheProgram) {
  ConnectAndInit();
  grpc::ClientContext context;
  pb::ExecRequest request;
  for (const char* argument : {"sh", "-c", "echo $$; exec sleep 1000"}) request.add_argv(argument);
  auto reader = stub_->Exec(&context, request);
  pb::ExecOutput part;
  ASSERT_TRUE(reader->Read(&part));
  pid_t pid = std::stoi(part.stdout_data());
  EXPECT_TRUE(IsRunning(pid));
  context.TryCancel();
  EXPECT_TRUE(Eventually([&] { return !IsRunning(pid); }));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(ServiceTest, ALostConnectionKillsTheProgram) {
  ConnectAndInit();
  grpc::ClientContext context;
  pb::ExecRequest request;
  for (const char* argument : {"sh", "-c", "echo $$; exec sleep 1000"}) request.add_argv(argument);
  auto reader = stub_->Exec(&context, request);
  pb::ExecOutput part;
  ASSERT_TRUE(reader->Read(&part));
  pid_t pid = std::stoi(part.stdout_data());
  ::shutdown(host_side_.get(), SHUT_RDWR);
  EXPECT_TRUE(Eventually([&] { return !IsRunning(pid); }));
  EXPECT_FALSE(reader->Finish().ok());
}

TEST_F(ServiceTest, ShutdownAnswersAndThenEnds) {
  ConnectAndInit();
  grpc::ClientContext context;
  pb::ShutdownRequest request;
  request.set_reboot(true);
  pb::ShutdownResponse response;
  ASSERT_TRUE(stub_->Shutdown(&context, request, &response).ok());
  EXPECT_EQ(power_.asked, "reboot");
}

}  // namespace
}  // namespace still::agent
