// What `still setup` writes: once, and where units find it; a second time it changes nothing.
#include "tools/still/setup/host_files.h"

#include <stdlib.h>
#include <sys/stat.h>

#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tools/still/credentials.h"

namespace still::cli {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// Stands for systemd-creds: what it seals opens only under the same name.
constexpr char kFakeCreds[] = R"sh(#!/bin/sh
set -e
case $1 in
  encrypt) echo "sealed $2"; cat "$3" | base64 ;;
  decrypt) read -r mark name <"$3"; [ "$mark $name" = "sealed $2" ]; tail -n +2 "$3" | base64 -d ;;
esac
)sh";

class HostFilesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = JoinPath(::testing::TempDir(), "still-setup-XXXXXX");
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
    places_ = {.configuration = JoinPath(dir_, "etc"),
               .units = JoinPath(dir_, "units"),
               .systemd_creds = JoinPath(dir_, "systemd-creds")};
    ASSERT_TRUE(WriteFileAtomically(places_.systemd_creds, kFakeCreds, 0755).ok());
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(dir_).ok()); }
  static bool Changed(const absl::StatusOr<SetupStep>& step) {
    EXPECT_TRUE(step.ok()) << step.status();
    return step.ok() && step->changed;
  }
  std::string Read(const std::string& path) const {
    absl::StatusOr<std::string> text = ReadFile(JoinPath(dir_, path), 1 << 20);
    return text.ok() ? *text : std::string(text.status().message());
  }
  static mode_t ModeOf(const std::string& path) {
    struct stat status {};
    EXPECT_EQ(::stat(path.c_str(), &status), 0) << path;
    return status.st_mode & 0777;
  }

  std::string dir_;
  HostFiles::Places places_;
};

TEST_F(HostFilesTest, APassphraseIsSealedOnceForAllUnits) {
  const HostFiles files(places_);
  EXPECT_EQ(*files.StoredPassphrase(), std::nullopt);
  EXPECT_TRUE(Changed(files.StorePassphrase("a secret")));
  EXPECT_FALSE(Changed(files.StorePassphrase("a secret")));
  EXPECT_EQ(*files.StoredPassphrase(), "a secret");
  EXPECT_THAT(Read("etc/passphrase.cred"), Not(HasSubstr("a secret")));
  EXPECT_EQ(ModeOf(JoinPath(dir_, "etc/passphrase.cred")), 0600u);
  for (const char* unit : {"stilld", "still-check", "still-run-due"}) {
    EXPECT_THAT(Read(absl::StrCat("units/", unit, ".service.d/passphrase.conf")),
                HasSubstr(absl::StrCat("\nLoadCredentialEncrypted=", kPassphraseCredential, ":", dir_,
                                       "/etc/passphrase.cred\n")));
  }
  EXPECT_TRUE(Changed(files.StorePassphrase("another")));
  EXPECT_EQ(*files.StoredPassphrase(), "another");
}

TEST_F(HostFilesTest, WithoutSystemdCredsItIsAFileOfRootsAlone) {
  places_.systemd_creds = JoinPath(dir_, "nosuch");
  const HostFiles files(places_);
  EXPECT_TRUE(Changed(files.StorePassphrase("a secret")));
  EXPECT_FALSE(Changed(files.StorePassphrase("a secret")));
  EXPECT_EQ(*files.StoredPassphrase(), "a secret");
  EXPECT_EQ(ModeOf(JoinPath(dir_, "etc/passphrase")), 0600u);
  EXPECT_THAT(Read("units/stilld.service.d/passphrase.conf"), HasSubstr("\nLoadCredential="));
}

TEST_F(HostFilesTest, SettingsGoToTheServiceAndToTheTimersAndTheRestStays) {
  ASSERT_TRUE(MakeDirectories(places_.configuration).ok());
  ASSERT_TRUE(
      WriteFileAtomically(JoinPath(dir_, "etc/stilld.conf"), "# Mine.\nwebhook=http://old\nhttp=127.0.0.1:1").ok());
  const HostFiles files(places_);
  const HostFiles::Settings settings = {.repository = "/srv/r", .webhook = "http://new"};
  EXPECT_TRUE(Changed(files.Configure(settings)));
  EXPECT_FALSE(Changed(files.Configure(settings)));
  EXPECT_FALSE(Changed(files.Configure({}))) << "what is not given is left as it is";
  EXPECT_EQ(Read("etc/stilld.conf"), "# Mine.\nwebhook=\"http://new\"\nhttp=127.0.0.1:1\nrepo=\"/srv/r\"\n");
  EXPECT_EQ(Read("etc/stilld.env"), "STILL_REPO=\"/srv/r\"\nSTILL_WEBHOOK=\"http://new\"\n");
  EXPECT_EQ(ModeOf(JoinPath(dir_, "etc/stilld.env")), 0600u);
  EXPECT_TRUE(Changed(files.Configure({.mail_to = "root", .ping = "http://ping"})));
  EXPECT_THAT(Read("etc/stilld.conf"), HasSubstr("\nmail-to=\"root\"\nping=\"http://ping\"\n"));
  EXPECT_THAT(Read("etc/stilld.env"), HasSubstr("\nSTILL_MAIL_TO=\"root\"\nSTILL_PING=\"http://ping\"\n"));
  EXPECT_EQ(files.Configure({.notify_command = "echo \"x\""}).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(HostFilesTest, ARepositoryElsewhereMayBeWrittenByTheUnits) {
  const HostFiles files(places_);
  EXPECT_TRUE(Changed(files.AllowWriting("/srv/two words")));
  EXPECT_FALSE(Changed(files.AllowWriting("/srv/two words")));
  EXPECT_THAT(Read("units/still-check.service.d/repository.conf"), HasSubstr("ReadWritePaths=\"-/srv/two words\"\n"));
  EXPECT_EQ(files.AllowWriting("/srv/100%").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(HostFilesTest, APathThatNoUnitCouldReadIsRefusedBeforeAnythingIsWritten) {
  const HostFiles files(places_);
  for (const char* path : {"/srv/caf\xe9", "/srv/a\"b", "/srv/a\nb", "/srv/a\\b"}) {
    const absl::Status refused = files.AllowWriting(path).status();
    EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument) << path;
    EXPECT_EQ(HostFiles::CheckRepository(path), refused);
    EXPECT_EQ(files.Configure({.repository = "/srv/r", .key_file = path}).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
  EXPECT_THAT(std::string(files.AllowWriting("/srv/caf\xe9").status().message()), HasSubstr("not UTF-8"));
  EXPECT_FALSE(PathExists(places_.units));
  EXPECT_FALSE(PathExists(places_.configuration)) << "nor the settings that could be";
}

TEST_F(HostFilesTest, AUnitFindsItsPassphraseInTheCredentials) {
  ASSERT_EQ(::unsetenv("STILL_KEY_FILE"), 0);
  ASSERT_EQ(::setenv("CREDENTIALS_DIRECTORY", dir_.c_str(), 1), 0);
  EXPECT_TRUE(FindCredentials({})->empty()) << "a repository without encryption has none";
  ASSERT_TRUE(WriteFileAtomically(JoinPath(dir_, kPassphraseCredential), "a secret\n").ok());
  EXPECT_EQ(FindCredentials({})->passphrase, "a secret");
  EXPECT_EQ(FindCredentials({.passphrase = "given"})->passphrase, "given");
  const store::Credentials key_file = *FindCredentials({.key_file = "/etc/key"});
  EXPECT_EQ(key_file.passphrase, "");
  EXPECT_EQ(key_file.key_file, "/etc/key");
  ASSERT_EQ(::unsetenv("CREDENTIALS_DIRECTORY"), 0);
}

}  // namespace
}  // namespace still::cli
