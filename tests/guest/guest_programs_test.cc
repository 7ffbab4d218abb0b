// The programs that the proofs rest on must themselves notice when something is wrong: run on this machine, killed,
// damaged and asked.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "base/process.h"
#include "tests/guest/record.h"

namespace still::guest {
namespace {

class GuestProgramsTest : public ::testing::Test {
 protected:
  GuestProgramsTest() {
    std::string pattern = (std::filesystem::temp_directory_path() / "still-guest-programs-XXXXXX").string();
    directory_ = mkdtemp(pattern.data());
  }
  ~GuestProgramsTest() override { std::filesystem::remove_all(directory_); }

  std::string Path(const std::string& name) const { return directory_ + "/" + name; }

  static std::vector<std::string> Command(const std::string& program, std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), std::string(GUEST_PROGRAMS) + "/" + program);
    return arguments;
  }
  ChildProcess Start(const std::string& program, std::vector<std::string> arguments) {
    auto child = ChildProcess::Start({.argv = Command(program, std::move(arguments)), .end_with_parent = true});
    if (!child.ok()) ADD_FAILURE() << child.status();
    return *std::move(child);
  }
  // Runs it to its end and gives what it printed as JSON; discarded JSON when that is none.
  nlohmann::json Ask(const std::string& program, std::vector<std::string> arguments, int expected_exit = 0) {
    int out = open(Path("out").c_str(), O_RDWR | O_CREAT | O_TRUNC, 0600);
    auto child = ChildProcess::Start({.argv = Command(program, std::move(arguments)), .stdout_fd = out});
    if (!child.ok()) ADD_FAILURE() << child.status();
    auto exit = child->Wait(absl::Seconds(60));
    close(out);
    EXPECT_TRUE(exit.ok() && exit->signal == 0 && exit->exit_code == expected_exit);
    std::ifstream in(Path("out"));
    return nlohmann::json::parse(in, nullptr, false);
  }
  // Asks again until the answer suits, for at most half a minute.
  nlohmann::json AskUntil(const std::string& program, const std::vector<std::string>& arguments,
                          const std::string& state, const std::function<bool(const nlohmann::json&)>& suits) {
    const absl::Time deadline = absl::Now() + absl::Seconds(30);
    nlohmann::json answer;
    do {
      if (std::filesystem::exists(state)) answer = Ask(program, arguments);
      if (answer.is_object() && suits(answer)) return answer;
      absl::SleepFor(absl::Milliseconds(5));
    } while (absl::Now() < deadline);
    ADD_FAILURE() << "never suited: " << answer.dump();
    return answer;
  }
  nlohmann::json WriterUntil(uint64_t acknowledged) {
    return AskUntil("record-writer", {"--report", "--state", Path("w")}, Path("w"), [&](const nlohmann::json& report) {
      return report["acknowledged"].get<uint64_t>() >= acknowledged;
    });
  }
  void Overwrite(const std::string& path, off_t offset, const std::string& bytes) {
    int fd = open(path.c_str(), O_RDWR);
    ASSERT_EQ(pwrite(fd, bytes.data(), bytes.size(), offset), static_cast<ssize_t>(bytes.size()));
    close(fd);
  }

  std::string directory_;
};

TEST_F(GuestProgramsTest, EveryAcknowledgedRecordIsThereAfterTheWriterIsKilled) {
  ChildProcess writer = Start("record-writer", {"--file", Path("r"), "--state", Path("w"), "--slots", "64"});
  WriterUntil(200);  // Three times round the file.
  kill(writer.pid(), SIGKILL);
  ASSERT_TRUE(writer.Wait(absl::Seconds(10)).ok());
  const nlohmann::json report = Ask("record-writer", {"--report", "--state", Path("w")});
  const nlohmann::json file = Ask("record-writer", {"--verify", Path("r")});
  EXPECT_EQ(report["running"], false);
  EXPECT_EQ(file["damaged"], 0);
  EXPECT_GE(file["records"].get<uint64_t>(), report["acknowledged"].get<uint64_t>());
  EXPECT_LE(file["records"].get<uint64_t>(), report["attempted"].get<uint64_t>());
  EXPECT_EQ(std::filesystem::file_size(Path("r")), 64 * kRecordSize);
}

TEST_F(GuestProgramsTest, ASecondRunGoesOnWhereTheFirstEnded) {
  {
    ChildProcess writer = Start("record-writer", {"--file", Path("r"), "--state", Path("w"), "--slots", "64"});
    WriterUntil(100);
  }
  const uint64_t records = Ask("record-writer", {"--verify", Path("r")})["records"];
  ChildProcess writer = Start("record-writer", {"--file", Path("r"), "--state", Path("w"), "--slots", "64"});
  const nlohmann::json report = WriterUntil(records + 1);
  EXPECT_EQ(report["first"], records);
  EXPECT_EQ(report["running"], true);
}

TEST_F(GuestProgramsTest, AStoppedWriterShowsAsAGapAndItsHistoryTellsWhatWasAcknowledgedWhen) {
  ChildProcess writer = Start("record-writer", {"--file", Path("r"), "--state", Path("w")});
  const nlohmann::json before = WriterUntil(50);
  kill(writer.pid(), SIGSTOP);
  const std::string since = std::to_string(before["now_ns"].get<uint64_t>());
  const nlohmann::json gap =
      AskUntil("record-writer", {"--report", "--state", Path("w"), "--since", since}, Path("w"),
               [](const nlohmann::json& report) { return report["longest_gap_ns"].get<uint64_t>() > 300'000'000; });
  kill(writer.pid(), SIGCONT);
  WriterUntil(gap["acknowledged"].get<uint64_t>() + 50);
  // As of a moment in the gap, what had been acknowledged is what it was when the writer stood still.
  const uint64_t middle = gap["now_ns"].get<uint64_t>() - 100'000'000;
  const nlohmann::json at = Ask("record-writer", {"--report", "--state", Path("w"), "--at", std::to_string(middle)});
  EXPECT_EQ(at["acknowledged_at"], gap["acknowledged"]);
  EXPECT_EQ(at["acknowledged_at_known"], true);
  EXPECT_GE(at["longest_gap_ns"].get<uint64_t>(), 300'000'000u);
}

TEST_F(GuestProgramsTest, VerifyNoticesDamageAnywhereAndTellsTheUnfinishedRecordFromIt) {
  const uint64_t slots = 16;
  auto write = [&](uint64_t records) {
    std::filesystem::remove(Path("r"));
    std::ofstream out(Path("r"), std::ios::binary);
    for (uint64_t number = records - std::min(records, slots); number < records; ++number) {
      const Record record = MakeRecord(number, slots, 1000 + number);
      out.seekp(number % slots * kRecordSize);
      out.write(reinterpret_cast<const char*>(&record), sizeof(record));
    }
  };
  for (uint64_t records : {uint64_t{5}, slots, uint64_t{37}}) {
    for (uint64_t slot = 0; slot < std::min(records, slots); ++slot) {
      SCOPED_TRACE(records * 1000 + slot);
      write(records);
      ASSERT_EQ(Ask("record-writer", {"--verify", Path("r")})["records"], records);
      Overwrite(Path("r"), slot * kRecordSize + 100, "X");
      // Without its newest record a file is the intact file of one record less, with the beginning of another.
      const bool newest = slot == (records - 1) % slots;
      const bool replaced = records >= slots && slot == records % slots;
      const nlohmann::json file = Ask("record-writer", {"--verify", Path("r")}, newest || replaced ? 0 : 1);
      EXPECT_EQ(file["records"], newest ? records - 1 : records);
      EXPECT_EQ(file["unfinished"], newest || replaced);
      EXPECT_EQ(file["damaged"], newest || replaced ? 0 : 1);
    }
  }
  // A record of another lap in the right place is damage too: that is what a stale block looks like.
  write(37);
  const Record stale = MakeRecord(35 - slots, slots, 1);
  Overwrite(Path("r"), 35 % slots * kRecordSize, std::string(reinterpret_cast<const char*>(&stale), sizeof(stale)));
  EXPECT_EQ(Ask("record-writer", {"--verify", Path("r")}, 1)["damaged"], 1);
}

TEST_F(GuestProgramsTest, TheCounterCountsAndChecksItself) {
  ChildProcess counter = Start("counter", {"--state", Path("c"), "--mib", "1"});
  AskUntil("counter", {"--report", "--state", Path("c")}, Path("c"),
           [](const nlohmann::json& report) { return report["passes"].get<uint64_t>() >= 2; });
  const nlohmann::json report = Ask("counter", {"--check", "--state", Path("c")});
  EXPECT_EQ(report["pages"], 256);
  EXPECT_EQ(report["errors"], 0);
  EXPECT_EQ(report["running"], true);
}

TEST_F(GuestProgramsTest, TheCounterNoticesAByteThatChangedInItsMemory) {
  ChildProcess counter = Start("counter", {"--state", Path("c"), "--mib", "8"});
  AskUntil("counter", {"--report", "--state", Path("c")}, Path("c"),
           [](const nlohmann::json& report) { return report["passes"].get<uint64_t>() >= 1; });
  // Its buffer is the one anonymous mapping of that size.
  std::ifstream maps("/proc/" + std::to_string(counter.pid()) + "/maps");
  std::string line;
  uint64_t begin = 0, end = 0;
  while (std::getline(maps, line)) {
    if (std::sscanf(line.c_str(), "%lx-%lx", &begin, &end) == 2 && end - begin >= 8u << 20) break;
  }
  ASSERT_GE(end - begin, 8u << 20);
  kill(counter.pid(), SIGSTOP);
  int memory = open(("/proc/" + std::to_string(counter.pid()) + "/mem").c_str(), O_RDWR);
  ASSERT_GE(memory, 0);
  uint64_t word = 0;
  ASSERT_EQ(pread(memory, &word, 8, begin + (4 << 20)), 8);
  word ^= 1;
  ASSERT_EQ(pwrite(memory, &word, 8, begin + (4 << 20)), 8);
  close(memory);
  kill(counter.pid(), SIGCONT);
  EXPECT_GE(Ask("counter", {"--check", "--state", Path("c")}, 1)["errors"], 1);
}

TEST_F(GuestProgramsTest, TheGapMeterSeesTheTimeItCouldNotRun) {
  ChildProcess meter = Start("gap-meter", {"--state", Path("g"), "--file", Path("f")});
  const std::vector<std::string> report = {"--report", "--state", Path("g")};
  const nlohmann::json before = AskUntil("gap-meter", report, Path("g"), [](const nlohmann::json& answer) {
    return answer["write"]["steps"] > 5 && answer["memory"]["steps"] > 5;
  });
  kill(meter.pid(), SIGSTOP);
  AskUntil("gap-meter", report, Path("g"), [](const nlohmann::json& answer) {
    return answer["write"]["longest_ns"] > 300'000'000 && answer["schedule"]["longest_ns"] > 300'000'000;
  });
  kill(meter.pid(), SIGCONT);
  AskUntil("gap-meter", report, Path("g"), [&](const nlohmann::json& answer) {
    return answer["write"]["steps"] > before["write"]["steps"].get<uint64_t>() + 5 &&
           answer["write"]["longest_ns"] > 300'000'000 && answer["schedule"]["longest_ns"] > 300'000'000;
  });
  // Of what came after: the percentiles know nothing of the gap.
  std::vector<std::string> since = report;
  const nlohmann::json now = Ask("gap-meter", report);
  since.insert(since.end(), {"--since", std::to_string(now["now_ns"].get<uint64_t>())});
  const nlohmann::json late = AskUntil("gap-meter", since, Path("g"),
                                       [](const nlohmann::json& answer) { return answer["memory"]["measured"] > 20; });
  EXPECT_LE(late["memory"]["late_p50_ns"], late["memory"]["late_p99_ns"]);
  EXPECT_LE(late["memory"]["late_p99_ns"], late["memory"]["longest_ns"]);
  EXPECT_LT(late["memory"]["measured"], late["memory"]["steps"]);
}

}  // namespace
}  // namespace still::guest
