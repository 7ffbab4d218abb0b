// The memory engine against a process whose memory at the point is known exactly.
#include "session/memory/memory_engine.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <thread>

#include "absl/strings/str_cat.h"
#include "base/unix_socket.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "session/memory/page_stream.h"
#include "tests/unit/session-memory/writing_process.h"

namespace still::session {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using testing::WritingProcess;

constexpr absl::Duration kPatience = absl::Seconds(60);
constexpr char kDevices[] = "the state of all devices";

// Reads a page stream into memory, in a thread of its own.
class Reader {
 public:
  // `base`: what an increment builds on.
  explicit Reader(OwnedFd socket, std::string base = {})
      : socket_(std::move(socket)), base_(std::move(base)), thread_([this] { Read(); }) {}
  ~Reader() {
    if (thread_.joinable()) thread_.join();
  }
  absl::Status Finish() {
    thread_.join();
    return status_;
  }
  const std::string& memory() const { return memory_; }
  const std::string& devices() const { return devices_; }
  bool increment() const { return increment_; }
  uint64_t first_page() const { return first_page_; }
  uint64_t bytes_of_pages() const { return bytes_of_pages_; }

 private:
  void Read() {
    auto source = [this](char* out, size_t size) -> absl::StatusOr<size_t> {
      const ssize_t got = ::read(socket_.get(), out, size);
      if (got < 0) return ErrnoStatus(errno, "read");
      return static_cast<size_t>(got);
    };
    std::string magic(kPageStreamMagicBytes, '\0');
    if (::recv(socket_.get(), magic.data(), magic.size(), MSG_WAITALL) != static_cast<ssize_t>(magic.size()) ||
        magic != kPageStreamMagic) {
      status_ = absl::DataLossError("no page stream");
      return;
    }
    status_ = ReadPageStream(source, WritingProcess::kBytes,
                             {.on_memory =
                                  [this](uint64_t bytes, bool increment) {
                                    increment_ = increment;
                                    memory_ = increment ? base_ : std::string(bytes, '\0');
                                    return memory_.size() == bytes ? absl::OkStatus()
                                                                   : absl::FailedPreconditionError("no base");
                                  },
                              .on_pages =
                                  [this](uint64_t offset, absl::string_view pages) {
                                    if (bytes_of_pages_ == 0) first_page_ = offset / kPageBytes;
                                    std::memcpy(memory_.data() + offset, pages.data(), pages.size());
                                    bytes_of_pages_ += pages.size();
                                    return absl::OkStatus();
                                  },
                              .on_device_state =
                                  [this](absl::string_view bytes) {
                                    devices_.append(bytes.data(), bytes.size());
                                    return absl::OkStatus();
                                  }});
  }

  OwnedFd socket_;
  const std::string base_;
  bool increment_ = false;
  uint64_t bytes_of_pages_ = 0;
  uint64_t first_page_ = 0;
  std::string memory_;
  std::string devices_;
  absl::Status status_;
  std::thread thread_;
};

OwnedFd DeviceState() {
  OwnedFd file(::memfd_create("devices", MFD_CLOEXEC));
  EXPECT_EQ(::write(file.get(), kDevices, sizeof kDevices - 1), static_cast<ssize_t>(sizeof kDevices - 1));
  return file;
}

using Content = MemorySaver::Content;

class MemoryEngineTest : public ::testing::TestWithParam<WritingProcess::Kind> {
 protected:
  void SetUp() override {
    auto machine = WritingProcess::Start(GetParam());
    if (absl::IsUnavailable(machine.status()) || absl::IsUnimplemented(machine.status())) {
      GTEST_SKIP() << "userfaultfd: " << machine.status().message();
    }
    ASSERT_TRUE(machine.ok()) << machine.status();
    machine_ = *std::move(machine);
    ASSERT_TRUE(machine_->GetsOn());
  }

  absl::StatusOr<std::unique_ptr<MemoryEngine>> Start(MemorySaver::Options options = {}) {
    STILL_ASSIGN_OR_RETURN(std::string program, FindMemoryEngine());
    options.stall_limit = kPatience;
    return MemoryEngine::Start({.program = program,
                                .userfaultfd = machine_->userfaultfd().get(),
                                .range = machine_->range(),
                                .saver = options});
  }
  // To the reader of what Arm is given.
  OwnedFd MakeSink(std::string base = {}) {
    auto pair = MakeSocketPair();
    EXPECT_TRUE(pair.ok());
    reader_ = std::make_unique<Reader>(std::move(pair->second), std::move(base));
    return std::move(pair->first);
  }
  // One whole save; what is wrong with it, or empty.
  absl::StatusOr<std::string> SaveAndCheck(MemorySaver::Options options = {}) {
    STILL_ASSIGN_OR_RETURN(std::unique_ptr<MemoryEngine> engine, Start(options));
    return SaveAndCheckWith(*engine, "", {});
  }
  absl::StatusOr<std::string> SaveAndCheckWith(MemoryEngine& engine, std::string base, const MemorySaver::Wish& wish) {
    STILL_RETURN_IF_ERROR(engine.Arm(MakeSink(std::move(base)), kPatience, wish));
    STILL_RETURN_IF_ERROR(engine.Round(kPatience));
    // A process that a busy host gives no time writes nothing, and then anything is right.
    EXPECT_TRUE(machine_->GetsOn(WritingProcess::kHotPages)) << "before the pause";
    machine_->Pause();
    const uint64_t at = machine_->written();
    absl::Status saved = engine.Protect(kPatience);
    const absl::Time resumed = WallClock();
    machine_->Resume();
    if (saved.ok()) {
      EXPECT_TRUE(machine_->GetsOn(writes_before_copying_)) << "before its pages are copied";
      saved = engine.Save(resumed, kPatience);
    }
    if (saved.ok()) saved = engine.Finish(DeviceState());
    STILL_RETURN_IF_ERROR(saved);
    figures_ = engine.figures();
    STILL_RETURN_IF_ERROR(reader_->Finish());
    EXPECT_EQ(reader_->devices(), kDevices);
    return machine_->WhatIsWrong(reader_->memory(), at);
  }

  std::unique_ptr<WritingProcess> machine_;
  std::unique_ptr<Reader> reader_;
  MemoryFigures figures_;
  uint64_t writes_before_copying_ = WritingProcess::kHotPages;
};

TEST_P(MemoryEngineTest, WhatIsSavedIsTheMemoryOfThePoint) {
  for (int i = 0; i < 4; ++i) {
    auto wrong = SaveAndCheck();
    ASSERT_TRUE(wrong.ok()) << wrong.status();
    EXPECT_EQ(*wrong, "") << "save " << i;
    EXPECT_GT(figures_.faults, 0u) << "nothing was written meanwhile; this has shown little";
    EXPECT_TRUE(machine_->GetsOn());
  }
}

// The control: without it the test above could not fail.
TEST_P(MemoryEngineTest, WithoutTheProtectionInThePauseItIsNot) {
  auto wrong = SaveAndCheck({.leave_out = 1});
  ASSERT_TRUE(wrong.ok()) << wrong.status();
  EXPECT_NE(*wrong, "");
}

TEST_P(MemoryEngineTest, IncrementsOverOneAnotherAreTheMemoryOfTheirPoints) {
  auto engine = Start();
  ASSERT_TRUE(engine.ok()) << engine.status();
  auto wrong = SaveAndCheckWith(**engine, "", {.track = true});
  ASSERT_TRUE(wrong.ok()) << wrong.status();
  EXPECT_EQ(*wrong, "");
  EXPECT_FALSE(reader_->increment());
  std::string base = reader_->memory();
  for (int i = 0; i < 6; ++i) {
    SCOPED_TRACE(i);
    // Somebody else's save in between takes all, and leaves the increments alone.
    if (i % 3 == 2) {
      wrong = SaveAndCheckWith(**engine, "", {.content = Content::kAllBeside, .track = true});
      ASSERT_TRUE(wrong.ok()) << wrong.status();
      EXPECT_EQ(*wrong, "");
      EXPECT_FALSE(reader_->increment());
    }
    ASSERT_TRUE(machine_->GetsOn());
    wrong = SaveAndCheckWith(**engine, base, {.content = Content::kIncrement, .track = true});
    ASSERT_TRUE(wrong.ok()) << wrong.status();
    EXPECT_EQ(*wrong, "");
    EXPECT_TRUE(reader_->increment());
    EXPECT_LE(reader_->bytes_of_pages(), WritingProcess::kHotPages * kPageBytes) << "no more than was written";
    EXPECT_GT(reader_->bytes_of_pages(), 0u);
    base = reader_->memory();
  }
  engine->reset();
  EXPECT_TRUE(machine_->GetsOn());
}

// A page that was something is nothing now: the increment says so.
TEST_P(MemoryEngineTest, AnIncrementHasPagesThatBecameZero) {
  auto engine = Start();
  ASSERT_TRUE(engine.ok()) << engine.status();
  auto wrong = SaveAndCheckWith(**engine, "", {.track = true});
  ASSERT_TRUE(wrong.ok()) << wrong.status();
  std::string base = reader_->memory();
  const uint64_t page = 1;  // Not a hot one.
  ASSERT_NE(base[page * kPageBytes], '\0');
  machine_->Pause();
  machine_->ZeroInPause(page);
  machine_->Resume();
  ASSERT_TRUE(machine_->GetsOn());
  wrong = SaveAndCheckWith(**engine, base, {.content = Content::kIncrement, .track = true});
  ASSERT_TRUE(wrong.ok()) << wrong.status();
  EXPECT_EQ(reader_->memory().substr(page * kPageBytes, kPageBytes), std::string(kPageBytes, '\0'));
}

class MemoryOverImageTest : public MemoryEngineTest {};

// What the image has is not read, and the next save, which tracks, builds on the one before.
TEST_P(MemoryOverImageTest, OnlyOwnPagesAreSaved) {
  auto engine = Start();
  ASSERT_TRUE(engine.ok()) << engine.status();
  const uint64_t zero = 1;  // A page of the image's.
  machine_->Pause();
  machine_->ZeroInPause(zero);
  machine_->Resume();
  ASSERT_TRUE(machine_->GetsOn());
  for (const bool track : {false, false, true}) {
    SCOPED_TRACE(track);
    auto wrong = SaveAndCheckWith(**engine, WritingProcess::Image(), {.track = track, .over_image = true});
    ASSERT_TRUE(wrong.ok()) << wrong.status();
    EXPECT_EQ(*wrong, "1 words are wrong; page 1 holds 0 in place of 11400714819323198485");
    EXPECT_TRUE(reader_->increment());
    EXPECT_EQ(reader_->bytes_of_pages(), (WritingProcess::kOwnPages + 1) * kPageBytes);
    if (!track) engine = Start();
    ASSERT_TRUE(engine.ok()) << engine.status();
  }
  const std::string base = reader_->memory();
  auto wrong = SaveAndCheckWith(**engine, WritingProcess::Image(),
                                {.content = Content::kAllBeside, .track = true, .over_image = true});
  ASSERT_TRUE(wrong.ok()) << wrong.status();
  EXPECT_EQ(reader_->bytes_of_pages(), (WritingProcess::kOwnPages + 1) * kPageBytes);
  wrong = SaveAndCheckWith(**engine, base, {.content = Content::kIncrement, .track = true});
  ASSERT_TRUE(wrong.ok()) << wrong.status();
  EXPECT_LE(reader_->bytes_of_pages(), WritingProcess::kHotPages * kPageBytes);
}

TEST_P(MemoryEngineTest, WithoutTrackingThereIsNoIncrement) {
  auto engine = Start();
  ASSERT_TRUE(engine.ok()) << engine.status();
  EXPECT_EQ((*engine)->Arm(MakeSink(), kPatience, {.content = Content::kIncrement, .track = true}).code(),
            absl::StatusCode::kFailedPrecondition);
  engine->reset();
  EXPECT_TRUE(machine_->GetsOn());
}

TEST_P(MemoryEngineTest, CopiesThatWaitForTheSinkAreBounded) {
  writes_before_copying_ = 1;  // The third would wait for the copier.
  auto wrong = SaveAndCheck({.max_waiting_bytes = 2 * kPageBytes});
  ASSERT_TRUE(wrong.ok()) << wrong.status();
  EXPECT_EQ(*wrong, "");
}

// The machine is about to write to it again.
TEST_P(MemoryEngineTest, WhatWasWrittenJustBeforeThePointIsCopiedFirst) {
  auto engine = Start();
  ASSERT_TRUE(engine.ok()) << engine.status();
  ASSERT_TRUE((*engine)->Arm(MakeSink(), kPatience, {}).ok());
  ASSERT_TRUE((*engine)->Round(kPatience).ok());
  ASSERT_TRUE(machine_->GetsOn(WritingProcess::kHotPages));
  machine_->Pause();
  ASSERT_TRUE((*engine)->Protect(kPatience).ok());
  // It still stands: nothing is copied because of a write.
  ASSERT_TRUE((*engine)->Save(WallClock(), kPatience).ok());
  ASSERT_TRUE((*engine)->Finish(DeviceState()).ok());
  ASSERT_TRUE(reader_->Finish().ok());
  EXPECT_GT(reader_->first_page() + 16, WritingProcess::kHotEvery - 1) << "the first hot page";
  EXPECT_LE(reader_->first_page(), WritingProcess::kHotEvery - 1);
}

TEST_P(MemoryEngineTest, AWriteInThePauseFailsTheSave) {
  auto engine = Start();
  ASSERT_TRUE(engine.ok()) << engine.status();
  ASSERT_TRUE((*engine)->Arm(MakeSink(), kPatience, {}).ok());
  machine_->Pause();
  ASSERT_TRUE((*engine)->Protect(kPatience).ok());
  machine_->WriteInPause(WritingProcess::kPages - 2);
  // It goes on once its fault has been read: that is before the machine runs.
  machine_->Resume();
  ASSERT_TRUE(machine_->GetsOn());
  absl::Status saved = (*engine)->Save(WallClock(), kPatience);
  EXPECT_EQ(saved.code(), absl::StatusCode::kAborted) << saved;
  EXPECT_THAT(std::string(saved.message()), HasSubstr("while it stood still"));
  EXPECT_TRUE(machine_->GetsOn());
}

TEST_P(MemoryEngineTest, AReaderThatVanishesEndsTheSaveOnly) {
  auto engine = Start();
  ASSERT_TRUE(engine.ok()) << engine.status();
  auto pair = MakeSocketPair();
  ASSERT_TRUE(pair.ok());
  ASSERT_TRUE((*engine)->Arm(std::move(pair->first), kPatience, {}).ok());
  pair->second.Reset();
  machine_->Pause();
  ASSERT_TRUE((*engine)->Protect(kPatience).ok());
  const absl::Time resumed = WallClock();
  machine_->Resume();
  ASSERT_TRUE((*engine)->Save(resumed, kPatience).ok());
  EXPECT_EQ((*engine)->Finish(DeviceState()).code(), absl::StatusCode::kAborted);
  EXPECT_TRUE(machine_->GetsOn());
}

TEST_P(MemoryEngineTest, AReaderThatHangsHoldsTheMachineNoLongerThanTheLimit) {
  auto program = FindMemoryEngine();
  ASSERT_TRUE(program.ok()) << program.status();
  auto engine =
      MemoryEngine::Start({.program = *program,
                           .userfaultfd = machine_->userfaultfd().get(),
                           .range = machine_->range(),
                           .saver = {.stall_limit = absl::Milliseconds(300), .max_waiting_bytes = kPageBytes}});
  ASSERT_TRUE(engine.ok()) << engine.status();
  auto pair = MakeSocketPair();
  ASSERT_TRUE(pair.ok());
  ASSERT_TRUE((*engine)->Arm(std::move(pair->first), kPatience, {}).ok());
  machine_->Pause();
  ASSERT_TRUE((*engine)->Protect(kPatience).ok());
  const absl::Time resumed = WallClock();
  machine_->Resume();
  ASSERT_TRUE((*engine)->Save(resumed, kPatience).ok());
  absl::Status finished = (*engine)->Finish(DeviceState());
  EXPECT_EQ(finished.code(), absl::StatusCode::kDeadlineExceeded) << finished;
  EXPECT_TRUE(machine_->GetsOn());
}

// Whatever happens to the engine, and whenever: the machine runs, and the next save is right.
enum class Fault { kKilled, kStopped, kCancelled, kDropped };
constexpr int kSteps = 4;  // Armed, paused, protected, saving.

class MemoryEngineFaultTest : public MemoryEngineTest {
 protected:
  void FailAt(int step, Fault fault) {
    SCOPED_TRACE(absl::StrCat("step ", step, ", fault ", static_cast<int>(fault)));
    auto engine = Start();
    ASSERT_TRUE(engine.ok()) << engine.status();
    auto hit = [&](int now) {
      if (now != step) return;
      if (fault == Fault::kKilled) ::kill((*engine)->pid(), SIGKILL);
      if (fault == Fault::kStopped) ::kill((*engine)->pid(), SIGSTOP);
      if (fault == Fault::kCancelled) (*engine)->Cancel();
      if (fault == Fault::kDropped) engine->reset();
    };
    auto pair = MakeSocketPair();
    ASSERT_TRUE(pair.ok());
    // A small reader: the save takes so long that it is met in the middle.
    ASSERT_TRUE((*engine)->Arm(std::move(pair->first), kPatience, {}).ok());
    hit(0);
    if (step == 0) return ExpectFree(*engine, fault);
    machine_->Pause();
    hit(1);
    if (step > 1) {
      ASSERT_TRUE((*engine)->Protect(kPatience).ok());
    }
    hit(2);
    const absl::Time resumed = WallClock();
    machine_->Resume();
    if (step < 3) return ExpectFree(*engine, fault);
    ASSERT_TRUE((*engine)->Save(resumed, kPatience).ok());
    hit(3);
    ExpectFree(*engine, fault);
  }
  void ExpectFree(std::unique_ptr<MemoryEngine>& engine, Fault fault) {
    EXPECT_TRUE(machine_->GetsOn());
    if (fault == Fault::kDropped) return;
    if (fault == Fault::kKilled || fault == Fault::kStopped) {
      // One that is stopped is only missed by somebody who waits for it: that is sure to happen by now.
      for (int i = 0; i < 6000 && engine->status().ok(); ++i) ::usleep(10'000);
      EXPECT_EQ(engine->status().code(), absl::StatusCode::kAborted) << engine->status();
    }
    EXPECT_FALSE(engine->Round(kPatience).ok() && engine->Protect(kPatience).ok());
    engine.reset();
    EXPECT_TRUE(machine_->GetsOn());
  }
};

TEST_P(MemoryEngineFaultTest, AtEveryStepTheMachineRunsAndTheNextSaveIsRight) {
  for (Fault fault : {Fault::kKilled, Fault::kStopped, Fault::kCancelled, Fault::kDropped}) {
    for (int step = 0; step < kSteps; ++step) {
      FailAt(step, fault);
      if (HasFatalFailure()) return;
    }
    auto wrong = SaveAndCheck();
    ASSERT_TRUE(wrong.ok()) << wrong.status();
    EXPECT_EQ(*wrong, "");
  }
}

TEST_P(MemoryEngineTest, AMachineThatEndsIsNoEndlessWait) {
  auto engine = Start();
  ASSERT_TRUE(engine.ok()) << engine.status();
  ASSERT_TRUE((*engine)->Arm(MakeSink(), kPatience, {}).ok());
  ::kill(machine_->pid(), SIGKILL);
  EXPECT_FALSE((*engine)->Protect(kPatience).ok() && (*engine)->Save(WallClock(), kPatience).ok() &&
               (*engine)->Finish(DeviceState()).ok());
}

std::string NameOf(const ::testing::TestParamInfo<WritingProcess::Kind>& info) {
  constexpr const char* kNames[] = {"anonymous", "shared", "private"};
  return kNames[static_cast<int>(info.param)];
}
const auto kKinds =
    ::testing::Values(WritingProcess::Kind::kAnonymous, WritingProcess::Kind::kShared, WritingProcess::Kind::kPrivate);
INSTANTIATE_TEST_SUITE_P(All, MemoryEngineTest, kKinds, NameOf);
INSTANTIATE_TEST_SUITE_P(All, MemoryEngineFaultTest, kKinds, NameOf);
INSTANTIATE_TEST_SUITE_P(All, MemoryOverImageTest, ::testing::Values(WritingProcess::Kind::kPrivate), NameOf);

}  // namespace
}  // namespace still::session
