#include "session/hypervisor/qemu/migration_stream.h"

#include <algorithm>
#include <cstring>
#include <map>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/migration_stream_builder.h"

namespace still::session {
namespace {

using ::still::testing::MigrationStreamBuilder;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr uint64_t kPage = 4096;
constexpr uint64_t kMemory = 64 * kPage;

class StringSource : public MigrationStreamSource {
 public:
  // Gives at most `step` bytes at a time.
  explicit StringSource(absl::string_view bytes, size_t step = SIZE_MAX) : left_(bytes), step_(step) {}
  absl::StatusOr<size_t> Read(char* out, size_t size) override {
    size = std::min({size, left_.size(), step_});
    std::memcpy(out, left_.data(), size);
    left_.remove_prefix(size);
    return size;
  }

 private:
  absl::string_view left_;
  const size_t step_;
};

class Recorder : public MemoryStreamReceiver {
 public:
  absl::Status OnMemorySize(uint64_t size) override {
    memory.assign(size, '\0');
    return absl::OkStatus();
  }
  absl::Status OnPages(uint64_t offset, absl::string_view data) override {
    EXPECT_LE(offset + data.size(), memory.size());
    EXPECT_EQ(data.size() % kPage, 0u);
    memory.replace(offset, data.size(), data.data(), data.size());
    ++calls;
    return pages_result;
  }
  absl::Status OnZeroPage(uint64_t offset) override {
    memory.replace(offset, kPage, kPage, '\0');
    ++zero_calls;
    return absl::OkStatus();
  }
  absl::Status OnDeviceState(absl::string_view data) override {
    absl::StrAppend(&device_state, data);
    return absl::OkStatus();
  }

  std::string memory;
  std::string device_state;
  int calls = 0;
  int zero_calls = 0;
  absl::Status pages_result;
};

std::string PageOf(char fill) { return std::string(kPage, fill); }

MigrationStreamBuilder Begun() {
  MigrationStreamBuilder stream;
  stream.Header().StartRam({{"pc.ram", kMemory}, {"pc.bios", 4 * kPage}}).EndSection();
  return stream;
}

absl::StatusOr<MigrationStreamReport> Split(const std::string& bytes, Recorder& recorder, size_t step = SIZE_MAX,
                                            MigrationStreamOptions options = {}) {
  StringSource source(bytes, step);
  return SplitMigrationStream(source, options, recorder);
}

absl::Status Refused(MigrationStreamBuilder& stream, MigrationStreamOptions options = {}) {
  Recorder recorder;
  return Split(stream.bytes(), recorder, SIZE_MAX, options).status();
}

TEST(MigrationStream, PagesGoOutAndTheRestStays) {
  MigrationStreamBuilder stream = Begun();
  stream.Part().Page("pc.ram", 0, PageOf('a')).Page("pc.ram", kPage, PageOf('b')).Page("pc.bios", 0, PageOf('B'));
  stream.Zero("pc.bios", kPage).Page("pc.ram", 5 * kPage, PageOf('c')).Zero("pc.ram", 6 * kPage).EndSection();
  stream.Part().Page("pc.ram", 63 * kPage, PageOf('d')).EndSection().Device("timer", "ticks").Finish();
  // What is kept names its block in every record, and the part with nothing but memory in it is gone.
  MigrationStreamBuilder kept = Begun();
  kept.Part().U64(0 | 0x08).Name("pc.bios").Raw(PageOf('B')).U64(kPage | 0x02).Name("pc.bios").U8(0).EndSection();
  kept.Device("timer", "ticks").Finish();
  std::string memory(kMemory, '\0');
  memory.replace(0, kPage, PageOf('a')).replace(kPage, kPage, PageOf('b'));
  memory.replace(5 * kPage, kPage, PageOf('c')).replace(63 * kPage, kPage, PageOf('d'));
  // Cut anywhere, the result is the same.
  for (size_t step : {size_t{1}, size_t{7}, size_t{4097}, SIZE_MAX}) {
    Recorder recorder;
    auto report = Split(stream.bytes(), recorder, step);
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_TRUE(recorder.memory == memory) << step;
    EXPECT_TRUE(recorder.device_state == kept.bytes()) << step;
    EXPECT_EQ(report->pages, 4u);
    EXPECT_EQ(report->zero_pages, 1u);
    EXPECT_EQ(report->memory_bytes, kMemory);
    EXPECT_EQ(report->stream_bytes, stream.bytes().size());
    EXPECT_EQ(report->device_state_bytes, kept.bytes().size());
    EXPECT_EQ(recorder.zero_calls, 0);
    Recorder small;
    ASSERT_TRUE(Split(stream.bytes(), small, step, {.buffer_bytes = 0}).ok());
    EXPECT_TRUE(small.memory == memory && small.device_state == kept.bytes()) << "with the smallest buffer";
  }
}

TEST(MigrationStream, NeighboursComeTogether) {
  MigrationStreamBuilder stream = Begun();
  stream.Part();
  for (uint64_t page = 0; page < 64; ++page) stream.Page("pc.ram", page * kPage, PageOf(static_cast<char>('!' + page)));
  stream.EndSection().Device("timer", "").Finish();
  Recorder recorder;
  ASSERT_TRUE(Split(stream.bytes(), recorder).ok());
  EXPECT_LE(recorder.calls, 3) << "one, but for those at the end of what was read";
  for (uint64_t page = 0; page < 64; ++page)
    EXPECT_EQ(recorder.memory[page * kPage + 17], '!' + static_cast<int>(page));
}

TEST(MigrationStream, TheLastWordOnAPageCounts) {
  MigrationStreamBuilder stream = Begun();
  stream.Part().Page("pc.ram", kPage, PageOf('a')).Page("pc.ram", 2 * kPage, PageOf('x')).EndSection();
  stream.Part().Page("pc.ram", kPage, PageOf('b')).Zero("pc.ram", 2 * kPage).Zero("pc.ram", 3 * kPage).EndSection();
  stream.End().EndSection().Device("timer", "").Finish();
  Recorder recorder;
  auto report = Split(stream.bytes(), recorder);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(recorder.memory[kPage], 'b');
  EXPECT_EQ(recorder.memory[2 * kPage], '\0');
  EXPECT_EQ(recorder.zero_calls, 1);
  EXPECT_EQ(report->repeated_pages, 2u);
}

TEST(MigrationStream, APlainStreamsEndStays) {
  MigrationStreamBuilder stream = Begun();
  stream.Part().Page("pc.ram", 0, PageOf('a')).EndSection().End().EndSection().Device("timer", "t").Finish();
  MigrationStreamBuilder kept = Begun();
  kept.End().EndSection().Device("timer", "t").Finish();
  Recorder recorder;
  ASSERT_TRUE(Split(stream.bytes(), recorder).ok());
  EXPECT_TRUE(recorder.device_state == kept.bytes());
}

// What QEMU writes beside the memory engine is kept as if there had been none.
TEST(MigrationStream, TheMarksOfASharedMemoryAreLeftOut) {
  auto without_memory = [](MigrationStreamBuilder& stream) {
    stream.StartRam({{"pc.ram", kMemory}, {"pc.bios", 4 * kPage}}).EndSection();
    stream.Part().U64(0 | 0x08).Name("pc.bios").Raw(PageOf('B')).EndSection();
    stream.Device("timer", "ticks").Finish();
  };
  MigrationStreamBuilder stream;
  without_memory(stream.Header().Capability("x-ignore-shared"));
  MigrationStreamBuilder kept;
  without_memory(kept.Header());
  Recorder recorder;
  auto report = Split(stream.bytes(), recorder);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->memory_bytes, kMemory);
  EXPECT_TRUE(recorder.device_state == kept.bytes());
}

TEST(MigrationStream, OtherMarksAreRefused) {
  MigrationStreamBuilder other;
  other.Header().Capability("multifd").StartRam({{"pc.ram", kMemory}}).EndSection();
  EXPECT_EQ(Refused(other).code(), absl::StatusCode::kUnimplemented);
  MigrationStreamBuilder twice;
  twice.Header().Capability("x-ignore-shared").Capability("x-ignore-shared");
  EXPECT_EQ(Refused(twice).code(), absl::StatusCode::kDataLoss);
  MigrationStreamBuilder unknown;
  unknown.Header().U8(0x05).Name("configuration/uuid").U32(1).U64(0).U64(0);
  EXPECT_EQ(Refused(unknown).code(), absl::StatusCode::kDataLoss);
  MigrationStreamBuilder late = Begun();
  late.Capability("x-ignore-shared");
  EXPECT_EQ(Refused(late).code(), absl::StatusCode::kDataLoss);
}

TEST(MigrationStream, CutAnywhereItIsRefused) {
  MigrationStreamBuilder stream = Begun();
  stream.Part().Page("pc.ram", 0, PageOf('a')).Page("pc.bios", 0, PageOf('B')).EndSection();
  stream.Device("timer", "some state").Finish();
  for (size_t size = 0; size < stream.bytes().size(); size += size < 200 || size > 8300 ? 1 : 97) {
    Recorder recorder;
    absl::Status status = Split(stream.bytes().substr(0, size), recorder).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << size << ": " << status;
  }
}

TEST(MigrationStream, HostileLengthsAndAddressesAreRefused) {
  auto expect = [](MigrationStreamBuilder& stream, const char* text) {
    absl::Status status = Refused(stream);
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << text << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(text));
  };
  expect(MigrationStreamBuilder().Raw("QEVM").U32(2), "version 3");
  expect(MigrationStreamBuilder().Raw("QEVM").U32(3).U8(7).U32(1 << 30), "configuration section too long");
  expect(MigrationStreamBuilder().Header().U8(0x55), "section type 85");
  expect(MigrationStreamBuilder().Header().Part(), "unknown section");
  expect(MigrationStreamBuilder().Header().Device("timer", ""), "before the memory");
  expect(MigrationStreamBuilder().Header().StartRam({{"mem", kPage}}), "no block pc.ram");
  expect(MigrationStreamBuilder().Header().StartRam({{"pc.ram", kPage}, {"pc.ram", kPage}}), "a block twice");
  expect(MigrationStreamBuilder().Header().StartRam({{"pc.ram", uint64_t{1} << 50}}), "memory of");
  expect(MigrationStreamBuilder().Header().U8(1).U32(2).Name("ram").U64(0).EndSection(), "no block pc.ram");
  expect(Begun().Part().Page("pc.ram", kMemory, PageOf('a')), "beyond the end");
  expect(Begun().Part().Page("pc.bios", 4 * kPage, PageOf('a')), "beyond the end");
  expect(Begun().Part().Page("other", 0, PageOf('a')), "unknown block");
  expect(Begun().Part().U64(0x28).Raw(PageOf('a')), "beyond the end");
  expect(Begun().Part().Zero("pc.ram", 0, 'x'), "not zero");
  expect(Begun().Part().U64(0x100), "page flags");
  expect(Begun().Part().U64(kPage | 0x04).Name("pc.ram").U64(kPage), "second list");
  expect(Begun().Part().U64(0x10).U8(0x7e).U32(9), "no footer");
  expect(Begun().StartRam({{"pc.ram", kPage}}), "second ram section");
  expect(Begun().EndSection().Device("timer", "").Finish(), "section type");
}

TEST(MigrationStream, ABlockListThatDoesNotAddUpIsRefused) {
  MigrationStreamBuilder stream;
  stream.Header().U8(1).U32(2).Name("ram").U32(0).U32(4).U64(kPage | 0x04).Name("pc.ram").U64(2 * kPage);
  EXPECT_THAT(std::string(Refused(stream).message()), HasSubstr("impossible block size"));
}

TEST(MigrationStream, TheMemoryMustBeTheMachines) {
  MigrationStreamBuilder stream = Begun();
  stream.Device("timer", "").Finish();
  EXPECT_TRUE(Refused(stream, {.memory_bytes = kMemory}).ok());
  EXPECT_EQ(Refused(stream, {.memory_bytes = 2 * kMemory}).code(), absl::StatusCode::kDataLoss);
}

TEST(MigrationStream, DeviceStateIsBounded) {
  MigrationStreamBuilder stream = Begun();
  stream.Device("timer", std::string(1 << 20, 'x')).Finish();
  EXPECT_THAT(std::string(Refused(stream, {.max_device_state_bytes = 1 << 19}).message()), HasSubstr("device state"));
}

TEST(MigrationStream, OneThatNeverEndsIsRefused) {
  // Endless: the same page again and again.
  class Endless : public MigrationStreamSource {
   public:
    absl::StatusOr<size_t> Read(char* out, size_t size) override {
      if (at_ == 0) {
        begin_ = Begun().Part().Page("pc.ram", 0, PageOf('a')).bytes();
        record_ = MigrationStreamBuilder().U64(0x28).Raw(PageOf('b')).bytes();
      }
      size_t done = 0;
      for (; done < size && at_ < begin_.size(); ++done, ++at_) out[done] = begin_[at_];
      for (; done < size; ++done, ++at_) out[done] = record_[(at_ - begin_.size()) % record_.size()];
      return done;
    }

   private:
    size_t at_ = 0;
    std::string begin_;
    std::string record_;
  } endless;
  Recorder recorder;
  absl::Status status = SplitMigrationStream(endless, {.max_device_state_bytes = 1 << 20}, recorder).status();
  EXPECT_THAT(std::string(status.message()), HasSubstr("does not end"));
}

TEST(MigrationStream, TheReceiversErrorIsReturned) {
  MigrationStreamBuilder stream = Begun();
  stream.Part().Page("pc.ram", 0, PageOf('a')).EndSection().Device("timer", "").Finish();
  Recorder recorder;
  recorder.pages_result = absl::ResourceExhaustedError("full");
  EXPECT_EQ(Split(stream.bytes(), recorder).status(), absl::ResourceExhaustedError("full"));
}

}  // namespace
}  // namespace still::session
