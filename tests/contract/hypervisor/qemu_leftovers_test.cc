// What captures leave in QEMU: nothing, also when it executed commands after they had been given up; and of bitmaps just
// what each repository needs.
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/unix_socket.h"
#include "gmock/gmock.h"
#include "tests/contract/hypervisor/qemu_capture_fixture.h"

namespace still::testing {
namespace {

using nlohmann::json;
using session::CaptureOptions;
using session::VmCapture;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class QemuLeftoversTest : public QemuCaptureFixture {
 protected:
  json Ask(const std::string& command, const json& arguments = json::object()) {
    auto answer = qemu_->machine()->qmp->Execute(command, arguments, kPatience);
    EXPECT_TRUE(answer.ok()) << answer.status();
    return answer.value_or(json::array());
  }
  // Nodes, exports and files that are a capture's.
  std::vector<std::string> Leftovers() {
    std::vector<std::string> left;
    for (const json& node : Ask("query-named-block-nodes", {{"flat", true}})) {
      const std::string name = node["node-name"];
      for (const char* kind : {"-cbw", "-fleece", "-snap"}) {
        if (absl::StrContains(name, kind)) left.push_back(name);
      }
    }
    for (const json& one : Ask("query-block-exports")) left.push_back(one["id"]);
    for (const std::string& name : ListDirectory(directory_).value_or(std::vector<std::string>())) {
      if (absl::StartsWith(name, "capture-")) left.push_back(name);
    }
    return left;
  }
  size_t BitmapsOnDisk(size_t disk) {
    for (const json& node : Ask("query-named-block-nodes", {{"flat", true}})) {
      if (node["node-name"] == absl::StrCat("disk", disk)) return node.value("dirty-bitmaps", json::array()).size();
    }
    return 0;
  }
  // A whole capture that may fail anywhere; with memory where it can be saved in the background.
  absl::Status Try(bool memory) {
    CaptureOptions options{.memory = memory, .repository_id = "aaaa", .max_pause = absl::Milliseconds(300)};
    OwnedFd sink;
    std::unique_ptr<MemoryReader> reader;
    if (memory) {
      STILL_ASSIGN_OR_RETURN(SocketPair pair, MakeSocketPair());
      sink = std::move(pair.first);
      reader = std::make_unique<MemoryReader>(std::move(pair.second));
    }
    STILL_ASSIGN_OR_RETURN(std::unique_ptr<VmCapture> capture,
                           session::PrepareQemuCapture(qemu_->machine(), options, std::move(sink)));
    STILL_RETURN_IF_ERROR(capture->FlushDisks());
    STILL_RETURN_IF_ERROR(Window(*capture).status());
    STILL_RETURN_IF_ERROR(capture->ExportDisks().status());
    if (memory) STILL_RETURN_IF_ERROR(capture->WaitForMemory(kPatience));
    return capture->Release(true);
  }
  // Holds each command of a capture in turn, and all behind it, until the capture has been given up.
  void HoldEachCommandOfACapture(bool memory) {
    session::QemuMachine& machine = *qemu_->machine();
    std::set<std::string> held;
    for (uint64_t command = 0;; ++command) {
      ASSERT_TRUE(qemu_->Write(1, 4096 * (command % 512), 4096, static_cast<uint8_t>(command)).ok());
      machine.command_deadline = absl::Milliseconds(300);
      qemu_->proxy().HoldAfter(command);
      absl::Status tried = Try(memory);
      const std::string at = qemu_->proxy().held();
      SCOPED_TRACE(absl::StrCat("command ", command, ": ", at));
      qemu_->proxy().LetGo();
      machine.command_deadline = kPatience;
      if (at.empty() && tried.ok()) break;
      held.insert(at);
      EXPECT_FALSE(tried.ok()) << "what was not answered was not missed";
      // The guest is not left paused, and the next capture is right.
      auto capture = Prepare({.repository_id = "aaaa"});
      ASSERT_TRUE(capture.ok()) << capture.status();
      EXPECT_EQ(Ask("query-status")["status"], "running");
      const std::vector<std::string> point = qemu_->model();
      ASSERT_TRUE(Window(**capture).ok());
      auto exports = (*capture)->ExportDisks();
      ASSERT_TRUE(exports.ok()) << exports.status();
      auto image = ReadExport((*exports)[1]);
      ASSERT_TRUE(image.ok()) << image.status();
      EXPECT_TRUE(*image == point[1]);
      absl::Status released = (*capture)->Release(true);
      ASSERT_TRUE(released.ok()) << released;
      EXPECT_THAT(Leftovers(), IsEmpty());
      EXPECT_EQ(BitmapsOnDisk(0), 1u);
      EXPECT_EQ(BitmapsOnDisk(1), 1u);
    }
    EXPECT_TRUE(held.contains(memory ? "migrate" : "cont"));
    // With memory QEMU is asked how far it is as often as time allows, so the numbers of later commands differ from try
    // to try, and one of them may be passed over.
    if (memory) return;
    for (const char* name : {"blockdev-add", "block-dirty-bitmap-add", "nbd-server-start", "stop", "qom-set",
                             "block-export-add", "block-export-del", "blockdev-del"}) {
      EXPECT_TRUE(held.contains(name)) << name;
    }
  }
};

TEST_F(QemuLeftoversTest, ACommandThatIsExecutedLateCostsTheNextCaptureNothing) {
  HoldEachCommandOfACapture(/*memory=*/false);
}

TEST_F(QemuLeftoversTest, AMemoryStreamThatBeginsLateCostsTheNextCaptureNothing) {
  if (!session::SetMigrationCapabilities(*qemu_->machine()->qmp, {{"background-snapshot", true}}).ok()) {
    GTEST_SKIP() << "no userfaultfd";
  }
  qemu_->machine()->capabilities.background_memory = true;
  HoldEachCommandOfACapture(/*memory=*/true);
}

// QEMU 9.0 and newer may do that by itself, where its bottom half meets a `cont`: a race, which is played here with `stop`.
TEST_F(QemuLeftoversTest, AVmThatAStreamThatBeganLateLeftPausedRunsOnAndIsCaptured) {
  session::QemuMachine& machine = *qemu_->machine();
  if (!session::SetMigrationCapabilities(*machine.qmp, {{"background-snapshot", true}}).ok()) {
    GTEST_SKIP() << "no userfaultfd";
  }
  machine.capabilities.background_memory = true;
  // Only what is held may take so long, on a busy host too.
  machine.command_deadline = absl::Seconds(3);
  qemu_->proxy().HoldAt("migrate");
  EXPECT_FALSE(Try(/*memory=*/true).ok());
  EXPECT_EQ(qemu_->proxy().held(), "migrate");
  ASSERT_NE(machine.earlier_stream, nullptr);
  qemu_->proxy().LetGo();
  machine.command_deadline = kPatience;
  ASSERT_TRUE(machine.qmp->Run("stop", json::object(), kPatience).ok());
  auto capture = Prepare();
  ASSERT_TRUE(capture.ok()) << capture.status();
  EXPECT_EQ(Ask("query-status")["status"], "running");
  EXPECT_TRUE(Window(**capture).ok());
  EXPECT_TRUE((*capture)->Release(true).ok());
  EXPECT_THAT(Leftovers(), IsEmpty());
}

TEST_F(QemuLeftoversTest, TwoRepositoriesAlternateAndEachStaysIncremental) {
  std::mt19937_64 random(20261129);
  struct Repository {
    std::string id;
    Bitmaps bitmaps;
    std::vector<std::string> images = std::vector<std::string>(ScriptedQemu::kDisks);
  };
  Repository repositories[2] = {{.id = "aaaaaaaaaaaaaaaa0000"}, {.id = "bbbbbbbbbbbbbbbb0000"}};
  for (int generation = 0; generation < 8; ++generation) {
    SCOPED_TRACE(generation);
    Repository& repository = repositories[generation % 2];
    ASSERT_TRUE(qemu_->WriteAtRandom(random).ok());
    auto capture = Prepare({.repository_id = repository.id, .base_bitmaps = repository.bitmaps});
    ASSERT_TRUE(capture.ok()) << capture.status();
    const std::vector<std::string> point = qemu_->model();
    ASSERT_TRUE(Window(**capture).ok());
    auto exports = (*capture)->ExportDisks();
    ASSERT_TRUE(exports.ok()) << exports.status();
    for (size_t i = 0; i < ScriptedQemu::kDisks; ++i) {
      EXPECT_EQ((*exports)[i].full_read_reason, "");
      EXPECT_EQ((*exports)[i].dirty_context.empty(), generation < 2);
      auto image = ReadOver((*exports)[i], repository.images[i]);
      ASSERT_TRUE(image.ok()) << image.status();
      ASSERT_TRUE(*image == point[i]);
      repository.images[i] = *std::move(image);
    }
    ASSERT_TRUE((*capture)->Release(true).ok());
    repository.bitmaps = BitmapsOf(*exports);
  }
  EXPECT_EQ(BitmapsOnDisk(0), 2u);
  EXPECT_EQ(BitmapsOnDisk(1), 2u);
}

TEST_F(QemuLeftoversTest, BitmapsOfRepositoriesThatAreGoneAreBounded) {
  for (int i = 0; i < 9; ++i) {
    auto capture = Prepare({.repository_id = absl::StrCat("repository", i)});
    ASSERT_TRUE(capture.ok()) << capture.status();
    ASSERT_TRUE(Window(**capture).ok());
    ASSERT_TRUE((*capture)->Release(true).ok());
  }
  EXPECT_LE(BitmapsOnDisk(0), 5u);
}

TEST_F(QemuLeftoversTest, WhatTheCapturesOfAHostKeepIsBoundedTogether) {
  const std::string other = JoinPath(directory_, "other");
  ASSERT_TRUE(MakeDirectories(other).ok());
  session::PinPool::File theirs;
  {
    auto file = session::PinPool(other, directory_).Make("1-vda", 8 << 20);
    ASSERT_TRUE(file.ok()) << file.status();
    theirs = *std::move(file);
  }
  const std::string mib(1 << 20, 'x');
  ASSERT_TRUE(PWriteAll(theirs.lock.get(), mib.data(), mib.size(), 0, "pin").ok());
  session::QemuMachine& machine = *qemu_->machine();
  machine.sessions = directory_;
  machine.pin_pool_limit = 2 << 20;
  ASSERT_TRUE(qemu_->Write(1, 0, ScriptedQemu::kDiskBytes, 1).ok());
  auto capture = Prepare();
  ASSERT_TRUE(capture.ok()) << capture.status();
  ASSERT_TRUE(Window(**capture).ok());
  EXPECT_TRUE((*capture)->CheckPins().ok());
  ASSERT_TRUE(qemu_->Write(1, 0, ScriptedQemu::kDiskBytes, 2).ok());
  absl::Status pins;
  const absl::Time end = absl::Now() + kPatience;
  while ((pins = (*capture)->CheckPins()).ok() && absl::Now() < end) absl::SleepFor(absl::Milliseconds(5));
  EXPECT_EQ(pins.code(), absl::StatusCode::kResourceExhausted) << pins;
  EXPECT_THAT(std::string(pins.message()), HasSubstr("for all of them"));
  EXPECT_TRUE((*capture)->Release(false).ok());
}

}  // namespace
}  // namespace still::testing
