// A rollback changes a machine, so it takes that machine's snapshots and no other's, unless somebody asks for it.
#include <stdlib.h>

#include <memory>
#include <string>

#include "base/file.h"
#include "base/host_identity.h"
#include "base/unix_socket.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "session/control/session_registry.h"
#include "session/machine_id.h"
#include "snapshot/rollback.h"

namespace still::snapshot {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class RollbackMachineTest : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = JoinPath(::testing::TempDir(), "still-rollback-XXXXXX");
    ASSERT_NE(::mkdtemp(root_.data()), nullptr);
    const store::RepositoryOptions repository = {.path = JoinPath(root_, "repository"), .workers = 1};
    ASSERT_TRUE(store::Repository::Init(repository).ok());
    repository_ = *store::Repository::Open(repository);
    sessions_ = std::make_unique<session::SessionRegistry>(root_);
    absl::StatusOr<session::SessionPlace> place = sessions_->Create("web");
    ASSERT_TRUE(place.ok()) << place.status();
    ASSERT_TRUE(WriteFileAtomically(JoinPath(place->directory, "session.json"),
                                    R"({"name": "web", "id": "id-of-web", "machine_id": "machine-of-web"})")
                    .ok());
    // That is all that a rollback needs before it looks at the snapshot: the session is there.
    absl::StatusOr<OwnedFd> socket = ListenUnix(JoinPath(place->directory, "control.sock"));
    ASSERT_TRUE(socket.ok()) << socket.status();
    socket_ = *std::move(socket);
    absl::StatusOr<HostIdentity> here = ReadHostIdentity(root_);
    ASSERT_TRUE(here.ok()) << here.status();
    here_ = *here;
    Commit("own", here_.id, "machine-of-web");
    Commit("sister", here_.id, "machine-of-another");
    Commit("stranger", std::string(32, 'b'), "machine-of-web");
  }
  void TearDown() override {
    repository_.reset();
    EXPECT_TRUE(RemoveTree(root_).ok());
  }
  void Commit(const std::string& name, const std::string& host_id, const std::string& machine_id) {
    manifestpb::Snapshot snapshot;
    snapshot.set_name(name);
    snapshot.set_session("web");
    snapshot.set_session_id("id-of-web");
    snapshot.set_host(here_.name);
    snapshot.set_host_id(host_id);
    snapshot.set_machine_id(machine_id);
    auto writer = repository_->BeginSnapshot();
    ASSERT_TRUE(writer.ok()) << writer.status();
    absl::StatusOr<std::string> id = (*writer)->Commit(snapshot);
    ASSERT_TRUE(id.ok()) << id.status();
  }
  std::string Refusal(const std::string& snapshot, bool other_machine) {
    absl::Status status =
        Rollback(*repository_, *sessions_, {.session = "web", .snapshot = snapshot, .other_machine = other_machine})
            .status();
    // Nothing can be restored of what has no disks: it is refused for that at the latest.
    EXPECT_FALSE(status.ok());
    return std::string(status.message());
  }

  std::string root_;
  HostIdentity here_;
  std::unique_ptr<store::Repository> repository_;
  std::unique_ptr<session::SessionRegistry> sessions_;
  OwnedFd socket_;
};

TEST_F(RollbackMachineTest, ASnapshotOfAnotherMachineIsRefusedUnlessAskedFor) {
  for (const char* snapshot : {"sister", "stranger"}) {
    EXPECT_THAT(Refusal(snapshot, /*other_machine=*/false), HasSubstr("is of another machine")) << snapshot;
    EXPECT_THAT(Refusal(snapshot, /*other_machine=*/false), HasSubstr("--other-machine")) << snapshot;
    EXPECT_THAT(Refusal(snapshot, /*other_machine=*/true), Not(HasSubstr("another machine"))) << snapshot;
  }
}

TEST_F(RollbackMachineTest, ItsOwnIsNotRefused) {
  EXPECT_THAT(Refusal("own", /*other_machine=*/false), Not(HasSubstr("another machine")));
}

TEST_F(RollbackMachineTest, LatestMeansThisHosts) {
  EXPECT_THAT(Refusal("latest", /*other_machine=*/false), HasSubstr("is of another machine"))
      << "of this host it is the sister's";
}

}  // namespace
}  // namespace still::snapshot
