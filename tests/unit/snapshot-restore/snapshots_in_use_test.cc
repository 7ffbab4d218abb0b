// Which snapshots must not be forgotten, by sessions that are sockets and files.
#include "snapshot/snapshots_in_use.h"

#include <grpcpp/grpcpp.h>
#include <stdlib.h>

#include <memory>
#include <optional>

#include "base/file.h"
#include "base/unix_socket.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace still::snapshot {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;
using ::testing::UnorderedElementsAre;

// A session's control service, as far as it matters here.
class Answering : public sessionpb::SessionControl::Service {
 public:
  explicit Answering(bool complete) : complete_(complete) {}
  grpc::Status Describe(grpc::ServerContext*, const sessionpb::DescribeRequest*,
                        sessionpb::DescribeResponse* response) override {
    if (!complete_) response->add_lazy_disks()->set_name("vda");
    return grpc::Status::OK;
  }

 private:
  const bool complete_;
};

class SnapshotsInUseTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = JoinPath(::testing::TempDir(), "still-use-XXXXXX");
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    root_ = pattern;
    sessions_.emplace(root_);
  }
  void TearDown() override {
    for (auto& server : servers_) server->Shutdown();
    servers_.clear();
    EXPECT_TRUE(RemoveTree(root_).ok());
  }

  // One that has ended.
  std::string Restored(const std::string& name, const std::string& snapshot, bool lazily) {
    const std::string directory = sessions_->Create(name).value().directory;
    const std::string server = lazily ? R"(, "diskServer": {"command": ["still", "serve"]})" : "";
    EXPECT_TRUE(
        WriteFileAtomically(JoinPath(directory, "session.json"),
                            "{\"name\": \"" + name + "\", \"originSnapshot\": \"" + snapshot + "\"" + server + "}")
            .ok());
    return JoinPath(directory, "control.sock");
  }
  void Serve(const std::string& socket, bool complete) {
    services_.push_back(std::make_unique<Answering>(complete));
    grpc::ServerBuilder builder;
    builder.AddListeningPort("unix:" + socket, grpc::InsecureServerCredentials());
    builder.RegisterService(services_.back().get());
    servers_.push_back(builder.BuildAndStart());
    ASSERT_NE(servers_.back(), nullptr);
  }

  std::string root_;
  std::optional<session::SessionRegistry> sessions_;
  std::vector<std::unique_ptr<Answering>> services_;
  std::vector<std::unique_ptr<grpc::Server>> servers_;
};

TEST_F(SnapshotsInUseTest, OnlyRunningSessionsWhoseDisksAreNotCompleteReadThem) {
  Serve(Restored("lazy", "one", true), false);
  Serve(Restored("twin", "one", true), false);
  Serve(Restored("complete", "two", true), true);
  Serve(Restored("copied", "three", false), false);
  Restored("ended", "four", true);
  auto in_use = FindSnapshotsInUse(*sessions_);
  ASSERT_TRUE(in_use.ok()) << in_use.status();
  EXPECT_THAT(*in_use, UnorderedElementsAre(Pair("one", "sessions lazy, twin read their disks from it")));
  EXPECT_TRUE(CheckNotInUse(*in_use, "two", "").ok());
  const absl::Status refused = CheckNotInUse(*in_use, "one", "point");
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(refused.message(), HasSubstr("snapshot point: sessions lazy, twin"));
  EXPECT_THAT(refused.message(), HasSubstr("still hydrate"));
}

TEST_F(SnapshotsInUseTest, ASessionThatDoesNotAnswerIsTakenForAReader) {
  auto deaf = ListenUnix(Restored("deaf", "one", true));
  ASSERT_TRUE(deaf.ok());
  auto in_use = FindSnapshotsInUse(*sessions_, absl::Milliseconds(200));
  ASSERT_TRUE(in_use.ok()) << in_use.status();
  EXPECT_THAT(*in_use, UnorderedElementsAre(Pair("one", "session deaf reads its disks from it")));
}

TEST_F(SnapshotsInUseTest, WithoutSessionsNothingIsInUse) {
  EXPECT_THAT(FindSnapshotsInUse(session::SessionRegistry(root_ + "/nowhere")).value(), IsEmpty());
}

}  // namespace
}  // namespace still::snapshot
