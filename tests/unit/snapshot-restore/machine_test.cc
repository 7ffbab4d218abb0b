#include "snapshot/machine.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "session/machine_id.h"

namespace still::snapshot {
namespace {

const HostIdentity kHere = {.id = std::string(32, 'a'), .name = "alpha"};
const HostIdentity kThere = {.id = std::string(32, 'b'), .name = "alpha"};  // Called alike.

sessionpb::SessionConfig Config(const std::string& name, const std::string& disk) {
  sessionpb::SessionConfig config;
  config.set_name(name);
  config.set_id("uuid-of-" + name);
  config.add_disks()->set_path(disk);
  return config;
}

manifestpb::Snapshot Of(const HostIdentity& host, const sessionpb::SessionConfig& config) {
  manifestpb::Snapshot snapshot;
  snapshot.set_session(config.name());
  snapshot.set_session_id(config.id());
  snapshot.set_host(host.name);
  snapshot.set_host_id(host.id);
  snapshot.set_machine_id(session::MachineIdOf(host, config));
  return snapshot;
}

manifestpb::Snapshot Old(const std::string& session, const std::string& session_id, const std::string& host) {
  manifestpb::Snapshot snapshot;
  snapshot.set_session(session);
  snapshot.set_session_id(session_id);
  snapshot.set_host(host);
  return snapshot;
}

TEST(MachineIdTest, IsKeptWhenAMachineIsStartedAgainFromItsDisk) {
  sessionpb::SessionConfig again = Config("web", "/vm/web.qcow2");
  again.set_id("another");
  const std::string id = session::StartedMachineId(kHere, Config("web", "/vm/web.qcow2"));
  EXPECT_EQ(session::StartedMachineId(kHere, again), id);
  EXPECT_NE(session::StartedMachineId(kHere, Config("web", "/vm/other.qcow2")), id) << "another machine of this name";
  EXPECT_NE(session::StartedMachineId(kHere, Config("web-2", "/vm/web.qcow2")), id);
  EXPECT_NE(session::StartedMachineId(kThere, Config("web", "/vm/web.qcow2")), id) << "another host";
}

TEST(MachineIdTest, ASessionOfBeforeKeepsTheOneThatItWillGetWhenItIsStartedAgain) {
  sessionpb::SessionConfig old = Config("web", "/vm/web.qcow2");
  EXPECT_EQ(session::MachineIdOf(kHere, old), session::StartedMachineId(kHere, old));
  old.set_origin_snapshot("some");
  EXPECT_EQ(session::MachineIdOf(kHere, old), old.id()) << "a copy is a machine of its own";
  old.set_machine_id("given");
  EXPECT_EQ(session::MachineIdOf(kHere, old), "given");
}

TEST(MachineTest, MachinesOfOneNameOnTwoHostsAreTwo) {
  const sessionpb::SessionConfig config = Config("web", "/vm/web.qcow2");
  EXPECT_TRUE(IsSnapshotOf(Of(kHere, config), IdentityOf(kHere, config)));
  EXPECT_FALSE(IsSnapshotOf(Of(kThere, config), IdentityOf(kHere, config)));
  EXPECT_FALSE(IsSnapshotOf(Of(kHere, Config("web", "/vm/new.qcow2")), IdentityOf(kHere, config)));
}

TEST(MachineTest, AMachineThatIsGoneIsKnownByItsNameOnThisHost) {
  const sessionpb::SessionConfig config = Config("web", "/vm/web.qcow2");
  const MachineIdentity gone = {.host = kHere, .machine_id = "", .session_id = "", .name = "web"};
  EXPECT_TRUE(IsSnapshotOf(Of(kHere, config), gone));
  EXPECT_FALSE(IsSnapshotOf(Of(kThere, config), gone)) << "the id of the host counts, not its name";
}

TEST(MachineTest, SnapshotsOfBeforeIdsAreToldByNamesOrTheSession) {
  const MachineIdentity web = IdentityOf(kHere, Config("web", "/vm/web.qcow2"));
  EXPECT_TRUE(IsSnapshotOf(Old("web", "another", "alpha"), web));
  EXPECT_FALSE(IsSnapshotOf(Old("web", "another", "beta"), web));
  EXPECT_FALSE(IsSnapshotOf(Old("db", "another", "alpha"), web));
  EXPECT_TRUE(IsSnapshotOf(Old("web", "uuid-of-web", "renamed"), web)) << "the host was renamed";
  EXPECT_FALSE(IsSnapshotOf(Old("web", "", "alpha"), web)) << "an imported file that is called so";
}

TEST(MachineTest, KeysJoinOldSnapshotsWithTheNewestMachineOfTheirNames) {
  const sessionpb::SessionConfig config = Config("web", "/vm/web.qcow2");
  const std::vector<std::string> keys =
      MachineKeys({Old("web", "x", "alpha"), Of(kHere, config), Of(kHere, Config("web", "/vm/new.qcow2")),
                   Old("web", "y", "beta"), Old("db", "z", "alpha"), Of(kThere, config)});
  EXPECT_EQ(keys[0], keys[5]);
  EXPECT_NE(keys[1], keys[2]);
  EXPECT_NE(keys[1], keys[5]);
  EXPECT_NE(keys[3], keys[0]);
  EXPECT_NE(keys[4], keys[0]);
}

}  // namespace
}  // namespace still::snapshot
