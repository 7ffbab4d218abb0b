#include "snapshot/memory_drain.h"

#include <linux/sockios.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>

#include "absl/time/clock.h"
#include "base/file.h"
#include "base/unix_socket.h"
#include "gtest/gtest.h"
#include "tests/support/migration_stream_builder.h"
#include "tests/unit/snapshot/recording_image.h"

namespace still::snapshot {
namespace {

using ::still::testing::MigrationStreamBuilder;
using ::still::testing::RecordedImage;
using ::still::testing::RecordingImage;

constexpr uint64_t kPages = 64;

std::string PageOf(uint64_t number) { return std::string(4096, static_cast<char>('A' + number % 50)); }

std::string Stream() {
  MigrationStreamBuilder stream;
  stream.Header().StartRam({{"pc.ram", kPages * 4096}}).EndSection().Part();
  for (uint64_t page = 0; page < kPages; page += 2) stream.Page("pc.ram", page * 4096, PageOf(page));
  stream.EndSection().Device("timer", "devices").Finish();
  return stream.bytes();
}

class MemoryDrainTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto pair = MakeSocketPair();
    ASSERT_TRUE(pair.ok());
    hypervisor_ = std::move(pair->first);
    drain_ = Drain(std::move(pair->second), kMemorySilence);
  }
  std::unique_ptr<MemoryDrain> Drain(OwnedFd stream, absl::Duration patience) {
    return std::make_unique<MemoryDrain>(
        std::move(stream), "qemu-migration-3", ::testing::TempDir(),
        [this](uint64_t size) -> absl::StatusOr<std::unique_ptr<store::ImageWriter>> {
          parser_nice_ = ::getpriority(PRIO_PROCESS, 0);
          return std::make_unique<RecordingImage>(image_, size);
        },
        patience);
  }
  void Send(const std::string& bytes) {
    ASSERT_TRUE(WriteAll(hypervisor_.get(), bytes.data(), bytes.size(), "stream").ok());
  }

  RecordedImage image_;
  std::atomic<int> parser_nice_ = -100;
  OwnedFd hypervisor_;
  std::unique_ptr<MemoryDrain> drain_;
};

TEST_F(MemoryDrainTest, PutsEveryPageInItsPlace) {
  drain_->LetGo();
  Send(Stream());
  hypervisor_.Reset();
  auto drained = drain_->Finish();
  ASSERT_TRUE(drained.ok()) << drained.status();
  EXPECT_EQ(drained->ram_bytes, kPages * 4096);
  EXPECT_EQ(drained->bytes_read, Stream().size());
  EXPECT_TRUE(image_.finished);
  for (uint64_t page = 0; page < kPages; ++page) {
    EXPECT_EQ(image_.content.substr(page * 4096, 4096), page % 2 == 0 ? PageOf(page) : std::string(4096, '\0'));
  }
}

// The guest is still frozen: bytes are taken, but the processors are left to the thaw. Then the work yields to the guest.
TEST_F(MemoryDrainTest, WorksOnlyOnceItIsLetGoAndInTheBackground) {
  Send(Stream());
  // It takes the bytes all the same: the hypervisor's socket runs empty.
  int queued = 1;
  while (queued > 0) ASSERT_EQ(::ioctl(hypervisor_.get(), SIOCOUTQ, &queued), 0);
  EXPECT_EQ(parser_nice_, -100) << "it has begun to work";
  hypervisor_.Reset();
  drain_->LetGo();
  ASSERT_TRUE(drain_->Finish().ok());
  EXPECT_GE(parser_nice_, 5);
}

TEST_F(MemoryDrainTest, ACutStreamIsNotAnImage) {
  drain_->LetGo();
  std::string stream = Stream();
  Send(stream.substr(0, stream.size() / 2));
  hypervisor_.Reset();
  auto drained = drain_->Finish();
  EXPECT_EQ(drained.status().code(), absl::StatusCode::kDataLoss) << drained.status();
  EXPECT_TRUE(drain_->own_failure().ok()) << "it was not our fault";
}

TEST_F(MemoryDrainTest, AFailingRepositoryIsTheReasonAndTheStreamIsCut) {
  image_.fail_with = absl::ResourceExhaustedError("repository full");
  drain_->LetGo();
  Send(Stream());
  EXPECT_EQ(drain_->Finish().status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(drain_->own_failure().code(), absl::StatusCode::kResourceExhausted);
  char byte;
  EXPECT_LE(::read(hypervisor_.get(), &byte, 1), 0) << "the other end is still open";
}

// Before the guest is thawed nothing may come for as long as its hooks take.
TEST_F(MemoryDrainTest, AStreamThatIsSilentIsGivenUpOnceTheGuestIsThawed) {
  constexpr absl::Duration kPatience = absl::Milliseconds(20);
  auto pair = MakeSocketPair();
  ASSERT_TRUE(pair.ok());
  auto drain = Drain(std::move(pair->second), kPatience);
  absl::SleepFor(5 * kPatience);
  const std::string stream = Stream();
  ASSERT_TRUE(WriteAll(pair->first.get(), stream.data(), stream.size() / 2, "stream").ok());
  while (drain->bytes_taken() < stream.size() / 2) absl::SleepFor(kPatience / 4);  // Not given up.
  drain->LetGo();
  absl::Status drained = drain->Finish().status();
  EXPECT_EQ(drained.code(), absl::StatusCode::kDeadlineExceeded) << drained;
  EXPECT_TRUE(drain->own_failure().ok()) << "it was not our fault";
}

TEST_F(MemoryDrainTest, DestroyedWhileHeldItWaitsForNobody) {
  Send(Stream());
  drain_.reset();
}

}  // namespace
}  // namespace still::snapshot
