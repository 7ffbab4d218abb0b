#include "guest-agent/identity/identity.h"

#include <sys/stat.h>
#include <unistd.h>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/guest-agent/fake_guest.h"
#include "tests/unit/guest-agent/fake_identity.h"

namespace still::agent {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

class IdentityTest : public ::testing::Test {
 protected:
  void Put(const std::string& path, const std::string& content, mode_t mode = 0644) {
    std::string full = root_ / path;
    ASSERT_TRUE(MakeDirectories(full.substr(0, full.rfind('/')), 0755).ok());
    ASSERT_TRUE(WriteFileAtomically(full, content, mode).ok());
  }
  std::string Get(const std::string& path) { return ReadFile(root_ / path, 1 << 20).value_or("(none)"); }
  // ssh-keygen as far as the agent can tell; everything else succeeds.
  absl::StatusOr<CommandOutput> RunProgram(std::vector<std::string> argv) {
    programs_.push_back(argv[0] + " " + argv[1]);
    if (argv[0] != "ssh-keygen") return CommandOutput{};
    std::string file = argv.back();
    if (keygen_fails_) return CommandOutput{.exit = {.exit_code = 1}, .stdout_text = "", .stderr_text = ""};
    STILL_RETURN_IF_ERROR(WriteFileAtomically(file, "new private " + argv[3]));
    STILL_RETURN_IF_ERROR(WriteFileAtomically(file + ".pub", "new public " + argv[3]));
    return CommandOutput{};
  }
  void PutWholeGuest() {
    Put("etc/machine-id", std::string(32, 'a') + "\n", 0444);
    Put("var/lib/dbus/machine-id", std::string(32, 'a') + "\n");
    Put("etc/hostname", "old\n");
    Put("etc/hosts", "127.0.0.1 localhost\n127.0.1.1\told.example old # old\n10.0.0.1 older\n");
    Put("etc/ssh/ssh_host_ed25519_key", "old private");
    Put("etc/ssh/ssh_host_ed25519_key.pub", "old public");
    Put("etc/ssh/ssh_host_rsa_key", "old private");
    Put("etc/ssh/ssh_host_rsa_key.pub", "old public");
    Put("etc/ssh/sshd_config", "# kept");
    Put("sys/class/net/eth0/address", "52:54:00:aa:bb:cc\n");
    Put("sys/class/net/lo/address", "00:00:00:00:00:00\n");
    Put("var/lib/dhcp/dhclient.eth0.leases", "lease");
    Put("var/lib/dhcp/notes", "kept");
    Put("var/lib/systemd/random-seed", std::string(512, 's'));
    Put("run/systemd/system/x", "");
    Put("etc/still/restore.d/10-hook", "#!/bin/sh\necho $1 $STILL_RESTORE_ID $STILL_HOSTNAME\n", 0755);
  }
  static pb::AdoptIdentityRequest Request(const std::string& id = "restore-1") {
    pb::AdoptIdentityRequest request;
    request.set_restore_id(id);
    request.set_entropy(std::string(64, 'e'));
    request.set_wall_ns(1700000000LL * 1000000000LL);
    request.set_hostname("fork-1");
    pb::NicIdentity& nic = *request.add_nics();
    nic.set_old_mac("52:54:00:AA:BB:CC");
    nic.set_new_mac("52:54:00:11:22:33");
    return request;
  }
  static std::map<std::string, pb::IdentityStep::Outcome> Outcomes(const pb::AdoptIdentityResponse& response) {
    std::map<std::string, pb::IdentityStep::Outcome> outcomes;
    for (const pb::IdentityStep& step : response.steps()) outcomes[step.name()] = step.outcome();
    return outcomes;
  }

  TempDir root_;
  FakeGuest guest_{FourDisks()};
  FakeIdentityKernel kernel_;
  std::vector<std::string> programs_;
  bool keygen_fails_ = false;
  IdentityAdopter adopter_{{.kernel = kernel_,
                            .controller = guest_.controller(),
                            .clock = guest_.clock,
                            .root = root_.path(),
                            .run = [this](std::vector<std::string> argv, absl::Duration) { return RunProgram(argv); }}};
};

TEST_F(IdentityTest, EverythingThatNoTwoMachinesMayShareIsNew) {
  PutWholeGuest();
  auto adopted = adopter_.Adopt(Request());
  ASSERT_TRUE(adopted.ok()) << adopted.status();
  for (const pb::IdentityStep& step : adopted->steps())
    EXPECT_EQ(step.outcome(), pb::IdentityStep::DONE) << step.name();
  EXPECT_EQ(Outcomes(*adopted).size(), 9u);
  EXPECT_THAT(adopted->machine_id(), ::testing::SizeIs(32));
  EXPECT_NE(adopted->machine_id(), std::string(32, 'a'));
  EXPECT_EQ(Get("etc/machine-id"), adopted->machine_id() + "\n");
  EXPECT_EQ(Get("var/lib/dbus/machine-id"), adopted->machine_id() + "\n");
  EXPECT_EQ(Get("etc/hostname"), "fork-1\n");
  EXPECT_EQ(Get("etc/hosts"), "127.0.0.1 localhost\n127.0.1.1\told.example fork-1 # old\n10.0.0.1 older\n");
  EXPECT_EQ(kernel_.hostname, "fork-1");
  EXPECT_EQ(Get("etc/ssh/ssh_host_ed25519_key"), "new private ed25519");
  EXPECT_EQ(Get("etc/ssh/ssh_host_rsa_key.pub"), "new public rsa");
  struct stat key {};
  ASSERT_EQ(::stat((root_ / "etc/ssh/ssh_host_rsa_key").c_str(), &key), 0);
  EXPECT_EQ(key.st_mode & 077, 0u);
  // Nothing of the making is left.
  EXPECT_THAT(*ListDirectory(root_ / "etc/ssh"),
              ElementsAre("ssh_host_ed25519_key", "ssh_host_ed25519_key.pub", "ssh_host_rsa_key",
                          "ssh_host_rsa_key.pub", "sshd_config"));
  EXPECT_EQ(kernel_.macs, (std::map<std::string, std::string>{{"eth0", "52:54:00:11:22:33"}}));
  EXPECT_THAT(*ListDirectory(root_ / "var/lib/dhcp"), ElementsAre("notes"));
  EXPECT_EQ(Get("var/lib/systemd/random-seed").size(), 512u);
  EXPECT_NE(Get("var/lib/systemd/random-seed"), std::string(512, 's'));
  ASSERT_EQ(adopted->hooks_size(), 1);
  EXPECT_EQ(adopted->hooks(0).output(), "restore restore-1 fork-1\n");
}

TEST_F(IdentityTest, RandomnessComesFirstThenTheClockThenTheThaw) {
  PutWholeGuest();
  ASSERT_TRUE(guest_.controller().Quiesce(QuiesceOf("t"), "c").ok());
  auto adopted = adopter_.Adopt(Request());
  ASSERT_TRUE(adopted.ok()) << adopted.status();
  EXPECT_EQ(adopted->steps(0).name(), "entropy");
  EXPECT_EQ(adopted->steps(1).name(), "clock");
  EXPECT_EQ(adopted->steps(2).name(), "thaw");
  EXPECT_EQ(adopted->thaw().thawed(), 4u);
  EXPECT_EQ(guest_.frozen_now(), 0);
  EXPECT_THAT(kernel_.calls, ElementsAre("entropy", "clock", "hostname", "mac"));
  EXPECT_THAT(kernel_.entropy, HasSubstr(std::string(64, 'e')));
  EXPECT_THAT(kernel_.entropy, HasSubstr("restore-1"));
  EXPECT_EQ(kernel_.wall, absl::FromUnixSeconds(1700000000));
}

TEST_F(IdentityTest, WithoutAReseedNothingElseHappens) {
  PutWholeGuest();
  ASSERT_TRUE(guest_.controller().Quiesce(QuiesceOf("t"), "c").ok());
  kernel_.entropy_status = absl::UnavailableError("RNDRESEEDCRNG: not ready");
  auto adopted = adopter_.Adopt(Request());
  EXPECT_EQ(adopted.status().code(), absl::StatusCode::kInternal);
  EXPECT_THAT(adopted.status().message(), HasSubstr("RNDRESEEDCRNG"));
  EXPECT_THAT(kernel_.calls, ElementsAre("entropy"));
  EXPECT_EQ(guest_.frozen_now(), 4);
  EXPECT_EQ(Get("etc/hostname"), "old\n");
  // It may be tried again.
  kernel_.entropy_status = absl::OkStatus();
  EXPECT_TRUE(adopter_.Adopt(Request()).ok());
  EXPECT_EQ(guest_.frozen_now(), 0);
}

TEST_F(IdentityTest, AGuestThatHasNothingOfTheKindIsDoneQuickly) {
  pb::AdoptIdentityRequest request = Request();
  request.clear_nics();
  request.clear_hostname();
  request.set_wall_ns(0);
  auto adopted = adopter_.Adopt(request);
  ASSERT_TRUE(adopted.ok()) << adopted.status();
  auto outcomes = Outcomes(*adopted);
  EXPECT_EQ(outcomes["entropy"], pb::IdentityStep::DONE);
  for (const char* name : {"clock", "machine-id", "hostname", "ssh-host-keys", "random-seed", "hooks"}) {
    EXPECT_EQ(outcomes[name], pb::IdentityStep::SKIPPED) << name;
  }
  EXPECT_EQ(adopted->machine_id(), "");
}

TEST_F(IdentityTest, AMachineThatIsGoneKeepsItsName) {
  PutWholeGuest();
  pb::AdoptIdentityRequest request = Request();
  request.set_keep_identity(true);
  auto adopted = adopter_.Adopt(request);
  ASSERT_TRUE(adopted.ok());
  EXPECT_EQ(adopted->steps_size(), 3);
  EXPECT_EQ(adopted->machine_id(), std::string(32, 'a'));
  EXPECT_EQ(adopted->hostname(), "old");
  EXPECT_EQ(Get("etc/ssh/ssh_host_rsa_key"), "old private");
  EXPECT_THAT(kernel_.calls, ElementsAre("entropy", "clock"));
}

TEST_F(IdentityTest, ASecondCallForTheSameRestoreChangesNothing) {
  PutWholeGuest();
  auto first = adopter_.Adopt(Request());
  auto second = adopter_.Adopt(Request());
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_EQ(first->SerializeAsString(), second->SerializeAsString());
  EXPECT_EQ(adopter_.Adopt(Request("restore-2"))->machine_id() == first->machine_id(), false);
}

TEST_F(IdentityTest, AFailedStepIsToldAndTheOthersAreDone) {
  PutWholeGuest();
  keygen_fails_ = true;
  pb::AdoptIdentityRequest request = Request();
  request.mutable_nics(0)->set_old_mac("52:54:00:00:00:01");
  Put("etc/still/restore.d/20-bad", "#!/bin/sh\nexit 1\n", 0755);
  auto adopted = adopter_.Adopt(request);
  ASSERT_TRUE(adopted.ok());
  auto outcomes = Outcomes(*adopted);
  EXPECT_EQ(outcomes["ssh-host-keys"], pb::IdentityStep::FAILED);
  EXPECT_EQ(outcomes["network"], pb::IdentityStep::FAILED);
  EXPECT_EQ(outcomes["hooks"], pb::IdentityStep::FAILED);
  EXPECT_EQ(outcomes["machine-id"], pb::IdentityStep::DONE);
  EXPECT_EQ(outcomes["random-seed"], pb::IdentityStep::DONE);
  // The old key serves on, whole.
  EXPECT_EQ(Get("etc/ssh/ssh_host_rsa_key"), "old private");
  EXPECT_THAT(*ListDirectory(root_ / "etc/ssh"), Not(::testing::Contains(HasSubstr(".still"))));
}

TEST_F(IdentityTest, RequestsThatMakeNoSenseChangeNothing) {
  std::vector<pb::AdoptIdentityRequest> requests(8, Request());
  requests[0].clear_restore_id();
  requests[1].set_entropy(std::string(31, 'e'));
  requests[2].set_entropy(std::string(1025, 'e'));
  requests[3].set_wall_ns(1);
  requests[4].set_hostname("no spaces");
  requests[5].set_hostname("-x");
  requests[6].mutable_nics(0)->set_new_mac("01:54:00:11:22:33");  // A group's.
  requests[7].mutable_nics(0)->set_old_mac("52:54:00");
  for (const auto& request : requests) {
    EXPECT_EQ(adopter_.Adopt(request).status().code(), absl::StatusCode::kInvalidArgument)
        << request.ShortDebugString();
  }
  EXPECT_TRUE(kernel_.calls.empty());
}

}  // namespace
}  // namespace still::agent
