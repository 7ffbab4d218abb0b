// One reader for both ways in which memory comes.
#include "session/hypervisor/memory_stream.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "gtest/gtest.h"
#include "session/memory/page_stream.h"
#include "tests/support/migration_stream_builder.h"

namespace still::session {
namespace {

using ::still::testing::MigrationStreamBuilder;

constexpr char kFormat[] = "qemu-migration-3";
constexpr uint64_t kStreamPage = 4096;
constexpr uint64_t kStreamMemory = 8 * kStreamPage;

class Collector : public MemoryStreamReceiver {
 public:
  absl::Status OnMemorySize(uint64_t size) override {
    memory.assign(size, '\0');
    return absl::OkStatus();
  }
  absl::Status OnPages(uint64_t offset, absl::string_view data) override {
    memory.replace(offset, data.size(), data.data(), data.size());
    return absl::OkStatus();
  }
  absl::Status OnZeroPage(uint64_t offset) override { return OnPages(offset, std::string(kStreamPage, '\0')); }
  absl::Status OnDeviceState(absl::string_view data) override {
    device_state.append(data.data(), data.size());
    return absl::OkStatus();
  }
  std::string memory;
  std::string device_state;
};

absl::Status SplitText(const std::string& stream, Collector& collector) {
  size_t taken = 0;
  return SplitMemoryStream(
      kFormat,
      [&](char* out, size_t size) -> absl::StatusOr<size_t> {
        const size_t part = std::min({size, stream.size() - taken, size_t{5}});
        std::memcpy(out, stream.data() + taken, part);
        taken += part;
        return part;
      },
      collector);
}

std::string LittleEndian(uint64_t value, size_t bytes) { return {reinterpret_cast<const char*>(&value), bytes}; }
std::string PageRecordOf(PageRecord kind, uint64_t offset, const std::string& content) {
  return LittleEndian(static_cast<uint32_t>(kind), 4) + LittleEndian(content.size(), 4) + LittleEndian(offset, 8) +
         content;
}
std::string PageStreamOf(const std::string& device_state) {
  return kPageStreamMagic + LittleEndian(kStreamMemory, 8) + LittleEndian(0, 8) +
         PageRecordOf(PageRecord::kPages, kStreamPage, std::string(kStreamPage, 'm')) +
         PageRecordOf(PageRecord::kDeviceState, 0, device_state) + PageRecordOf(PageRecord::kEnd, 0, "");
}
std::string DeviceStateOf(uint64_t memory, bool with_a_page) {
  MigrationStreamBuilder stream;
  stream.Header().Capability("x-ignore-shared").StartRam({{"pc.ram", memory}}).EndSection();
  if (with_a_page) stream.Part().Page("pc.ram", 0, std::string(kStreamPage, 'x')).EndSection();
  stream.Device("timer", "ticks").Finish();
  return stream.bytes();
}

TEST(MemoryStream, OfTheEngineAndOfQemuGiveTheSame) {
  MigrationStreamBuilder qemu;
  qemu.Header().StartRam({{"pc.ram", kStreamMemory}}).EndSection();
  qemu.Part().Page("pc.ram", kStreamPage, std::string(kStreamPage, 'm')).EndSection().Device("timer", "ticks").Finish();
  Collector from_qemu;
  Collector from_engine;
  ASSERT_TRUE(SplitText(qemu.bytes(), from_qemu).ok());
  ASSERT_TRUE(SplitText(PageStreamOf(DeviceStateOf(kStreamMemory, false)), from_engine).ok());
  EXPECT_TRUE(from_engine.memory == from_qemu.memory);
  EXPECT_TRUE(from_engine.device_state == from_qemu.device_state);
}

TEST(MemoryStream, ADeviceStateThatDoesNotFitIsRefused) {
  Collector collector;
  EXPECT_EQ(SplitText(PageStreamOf(DeviceStateOf(kStreamMemory / 2, false)), collector).code(),
            absl::StatusCode::kDataLoss);
  EXPECT_EQ(SplitText(PageStreamOf(DeviceStateOf(kStreamMemory, true)), collector).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(SplitText(PageStreamOf(""), collector).code(), absl::StatusCode::kDataLoss) << "there is none";
}

TEST(MemoryStream, WhatIsNoStreamIsRefused) {
  Collector collector;
  for (const char* stream : {"", "QEV", "STPAGES", "something else entirely"}) {
    EXPECT_EQ(SplitText(stream, collector).code(), absl::StatusCode::kDataLoss) << stream;
  }
}

}  // namespace
}  // namespace still::session
