// SocketServer: the standard health service on a UNIX socket (grpc.health.v1), asked without its generated code.
#include "tools/stilld/socket_server.h"

#include <fcntl.h>
#include <grpcpp/create_channel_posix.h>
#include <grpcpp/generic/generic_stub.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <chrono>
#include <memory>
#include <string>

#include "base/file.h"
#include "base/unix_socket.h"
#include "gtest/gtest.h"
#include "proto/schedule.grpc.pb.h"

namespace still::daemon {
namespace {

// HealthCheckResponse{status}: field 1, a varint; SERVING is 1, NOT_SERVING 2.
constexpr char kServing[] = "\x08\x01";
constexpr char kNotServing[] = "\x08\x02";

std::string CheckHealth(const std::string& path) {
  absl::StatusOr<OwnedFd> socket = ConnectUnix(path);
  if (!socket.ok()) return socket.status().ToString();
  ::fcntl(socket->get(), F_SETFL, ::fcntl(socket->get(), F_GETFL) | O_NONBLOCK);
  auto channel = grpc::CreateInsecureChannelFromFd("stilld", socket->Release());
  grpc::TemplatedGenericStub<grpc::ByteBuffer, grpc::ByteBuffer> stub(channel);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
  grpc::CompletionQueue queue;
  grpc::Slice empty("");  // The service that is asked about: all. A buffer without a slice is no message.
  grpc::ByteBuffer request(&empty, 1);
  grpc::ByteBuffer response;
  grpc::Status status;
  auto call = stub.PrepareUnaryCall(&context, "/grpc.health.v1.Health/Check", request, &queue);
  call->StartCall();
  call->Finish(&response, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  queue.Next(&tag, &ok);
  if (!status.ok()) return status.error_message();
  grpc::Slice slice;
  return response.DumpToSingleSlice(&slice).ok() ? std::string(slice.begin(), slice.end()) : "no slice";
}

TEST(SocketServerTest, AnswersHealthForItsOwnerOnly) {
  std::string dir = JoinPath(::testing::TempDir(), "still-socket-XXXXXX");
  ASSERT_NE(::mkdtemp(dir.data()), nullptr);
  const std::string path = JoinPath(dir, "stilld.sock");
  ::stillpoint::schedule::v1::ScheduleControl::Service service;
  {
    absl::StatusOr<OwnedFd> listening = ListenUnix(path);
    ASSERT_TRUE(listening.ok()) << listening.status();
    struct stat status {};
    ASSERT_EQ(::stat(path.c_str(), &status), 0);
    EXPECT_EQ(status.st_mode & 0777, 0600u);
    absl::StatusOr<std::unique_ptr<SocketServer>> server = SocketServer::Start(*std::move(listening), service);
    ASSERT_TRUE(server.ok()) << server.status();
    for (int connection = 0; connection < 3; ++connection) EXPECT_EQ(CheckHealth(path), kServing);
    (*server)->SetServing(false);
    EXPECT_EQ(CheckHealth(path), kNotServing);
  }
  EXPECT_TRUE(RemoveTree(dir).ok());
}

}  // namespace
}  // namespace still::daemon
