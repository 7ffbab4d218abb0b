// The plugin in the real nbdkit, read by a real client: what is served is what was stored, and what cannot be read is an
// error that says what is missing.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <filesystem>
#include <optional>
#include <random>
#include <thread>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/process.h"
#include "tests/contract/nbdkit/nbd_client.h"
#include "tests/unit/store/test_repository.h"

namespace still {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Key;
using testing::NbdClient;
using ::testing::Not;

constexpr size_t kImageBytes = (6 << 20) + 1000;  // Several leaves, and no whole number of blocks.

class NbdkitTest : public ::testing::Test {
 protected:
  void SetUp() override {
    options_ = {.path = JoinPath(directory_.path(), "repo")};
    content_ = store::MakeImage(7, kImageBytes);
    content_.replace(2 << 20, 1 << 20, std::string(1 << 20, '\0'));
  }
  void MakeRepository() {
    options_.key_cost = {.passes = 1, .memory_kib = 8 << 10};
    repository_ = store::MustMake(options_);
    auto id = store::StoreImage(*repository_, "point", content_);
    ASSERT_TRUE(id.ok()) << id.status();
    id_ = *id;
  }
  // Runs nbdkit until it serves or ends.
  void Serve(std::vector<std::string> words, std::vector<int> fds = {}) {
    socket_ = JoinPath(directory_.path(), "nbd.sock");
    ASSERT_TRUE(RemoveFile(socket_).ok());
    words.insert(words.begin(), {"nbdkit", "-f", "-U", socket_, "--filter=readahead", STILL_NBDKIT_PLUGIN});
    auto log = OpenFile(LogPath(), O_WRONLY | O_CREAT | O_TRUNC);
    ASSERT_TRUE(log.ok());
    auto started = ChildProcess::Start(
        {.argv = words, .stderr_fd = log->get(), .inherited_fds = std::move(fds), .end_with_parent = true});
    ASSERT_TRUE(started.ok()) << started.status();
    server_.emplace(*std::move(started));
    const absl::Duration deadline = Clock::Real().Monotonic() + absl::Seconds(20);
    while (!PathExists(socket_) && !server_->Wait(absl::Milliseconds(10)).ok()) {
      ASSERT_LT(Clock::Real().Monotonic(), deadline) << Log();
    }
  }
  void ServePoint() { Serve({"repository=" + options_.path, "snapshot=point"}); }
  std::unique_ptr<NbdClient> Connect(const std::string& name) {
    auto client = NbdClient::Connect(socket_, name);
    EXPECT_TRUE(client.ok()) << client.status() << Log();
    return client.ok() ? *std::move(client) : nullptr;
  }
  std::string LogPath() const { return JoinPath(directory_.path(), "log"); }
  std::string Log() const { return ReadFile(LogPath(), 1 << 20).value_or("no log"); }
  std::string PackWithData() const {
    std::filesystem::path largest;
    uint64_t size = 0;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(JoinPath(options_.path, "packs"))) {
      if (!entry.is_regular_file() || entry.file_size() <= size) continue;
      size = entry.file_size();
      largest = entry.path();
    }
    return largest.string();
  }

  store::TemporaryDirectory directory_;
  store::RepositoryOptions options_;
  std::unique_ptr<store::Repository> repository_;
  std::string content_;
  std::string id_;
  std::string socket_;
  std::optional<ChildProcess> server_;
};

TEST_F(NbdkitTest, AllBytesArriveWhateverTheRangesAndConnections) {
  MakeRepository();
  ServePoint();
  auto client = Connect("vda");
  ASSERT_NE(client, nullptr);
  EXPECT_EQ(client->size(), content_.size());
  EXPECT_TRUE(client->read_only());
  EXPECT_TRUE(client->can_multi_conn());
  EXPECT_EQ(client->preferred_block(), 4096u);
  EXPECT_TRUE(*client->Read(0, content_.size()) == content_);
  EXPECT_TRUE(client->Prefetch(0, content_.size()).ok());

  std::vector<std::thread> readers;
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    readers.emplace_back([&, seed] {
      auto own = Connect(seed % 2 == 0 ? "vda" : "");
      std::mt19937_64 random(seed);
      for (int i = 0; i < 200; ++i) {
        const size_t offset = random() % content_.size();
        const size_t size = 1 + random() % std::min<size_t>(content_.size() - offset, 300 << 10);
        auto read = own->Read(offset, size);
        ASSERT_TRUE(read.ok()) << read.status();
        ASSERT_TRUE(*read == content_.substr(offset, size)) << "seed " << seed << ", " << size << " at " << offset;
      }
    });
  }
  for (std::thread& reader : readers) reader.join();
}

TEST_F(NbdkitTest, ZeroBlocksAreHolesAndNothingElseIs) {
  MakeRepository();
  ServePoint();
  auto map = Connect("vda")->Map();
  ASSERT_TRUE(map.ok()) << map.status();
  std::string expected;
  for (size_t at = 0; at < content_.size(); at += 4096) {
    const bool zero = content_.find_first_not_of('\0', at) >= std::min(content_.size(), at + 4096);
    expected += zero ? 'z' : 'd';
  }
  EXPECT_EQ(*map, expected);
  EXPECT_THAT(expected, HasSubstr(std::string(256, 'z')));
}

TEST_F(NbdkitTest, ExportsAreListedAndUnknownOnesRefused) {
  MakeRepository();
  ServePoint();
  EXPECT_THAT(*NbdClient::List(socket_), ElementsAre(Key("vda")));
  EXPECT_FALSE(NbdClient::Connect(socket_, "vdb").ok());
  EXPECT_THAT(Log(), HasSubstr("has no image \"vdb\"; there are: vda"));
  Serve({"repository=" + options_.path});
  EXPECT_THAT(*NbdClient::List(socket_), ElementsAre(Key("point/vda")));
  EXPECT_TRUE(*Connect(id_.substr(0, 8) + "/vda")->Read(0, 4096) == content_.substr(0, 4096));
}

TEST_F(NbdkitTest, WhatIsMissingOrDamagedIsAnErrorThatNamesItAndComesBack) {
  MakeRepository();
  ServePoint();
  auto client = Connect("vda");
  ASSERT_NE(client, nullptr);
  const std::string pack = PackWithData();
  ASSERT_EQ(::rename(pack.c_str(), (pack + ".away").c_str()), 0);
  EXPECT_EQ(client->Read(0, content_.size()).status().code(), absl::StatusCode::kDataLoss) << "EIO";
  EXPECT_THAT(Log(), HasSubstr("error: cannot read snapshot point, image vda, bytes ")) << "for the disk server";
  ASSERT_EQ(::rename((pack + ".away").c_str(), pack.c_str()), 0);
  EXPECT_TRUE(*client->Read(0, content_.size()) == content_);

  // Damage, unlike absence, is found in what is read anew only.
  ServePoint();
  client = Connect("vda");
  auto fd = OpenFile(pack, O_RDWR);
  ASSERT_TRUE(fd.ok()) << fd.status();
  const std::string garbage(64 << 10, '\x5a');
  ASSERT_TRUE(PWriteAll(fd->get(), garbage.data(), garbage.size(), 4096, "garbage").ok());
  EXPECT_EQ(client->Read(0, content_.size()).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(Log(), HasSubstr("snapshot point, image vda, bytes "));
}

TEST_F(NbdkitTest, APassphraseComesByDescriptorAsOftenAsTheServerIsStarted) {
  options_.credentials.passphrase = "correct horse";
  MakeRepository();
  OwnedFd fd(::memfd_create("passphrase", 0));
  ASSERT_TRUE(WriteAll(fd.get(), "correct horse\n", 14, "memfd").ok());
  for (int start = 0; start < 2; ++start) {
    Serve({"repository=" + options_.path, "snapshot=point", absl::StrCat("passphrase-fd=", fd.get())}, {fd.get()});
    auto client = Connect("vda");
    ASSERT_NE(client, nullptr);
    EXPECT_TRUE(*client->Read(0, 8192) == content_.substr(0, 8192));
  }
  ServePoint();
  EXPECT_FALSE(server_->Wait(absl::Seconds(10))->ok());
  EXPECT_THAT(Log(), HasSubstr("encrypted"));
}

TEST_F(NbdkitTest, WordsItDoesNotKnowAreRefusedAndASecretIsNoWord) {
  MakeRepository();
  Serve({"repository=" + options_.path, "passphrase=correct horse"});
  EXPECT_FALSE(server_->Wait(absl::Seconds(10))->ok());
  EXPECT_THAT(Log(), HasSubstr("unknown key \"passphrase\""));
  EXPECT_THAT(Log(), Not(HasSubstr("horse")));
  Serve({"snapshot=point"});
  EXPECT_FALSE(server_->Wait(absl::Seconds(10))->ok());
  EXPECT_THAT(Log(), HasSubstr("repository=DIRECTORY"));
}

}  // namespace
}  // namespace still
