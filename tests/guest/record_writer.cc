// record-writer: writes one record after the other, each made durable (fsync) before the next is begun, and keeps what
// was acknowledged and when, for whoever must prove later that nothing was lost. It goes on where an earlier run ended.
//
//   record-writer [--file F] [--state F] [--slots N]
//   record-writer --report [--state F] [--since NS] [--at NS]    what the running writer has acknowledged, as JSON
//   record-writer --verify FILE                                  what a record file holds, as JSON; exit 1 if damaged
//
// --since: the longest gap between acknowledgements is that of those after NS; else of all that are remembered.
// --at: also tell the newest record that had been acknowledged at NS. Times are CLOCK_BOOTTIME in ns.
#include <algorithm>
#include <cinttypes>

#include "tests/guest/program.h"
#include "tests/guest/record.h"

namespace still::guest {
namespace {

constexpr uint64_t kHistory = 1 << 16;  // Acknowledgements that are remembered: more than a minute's.

struct State {
  std::atomic<uint64_t> pid;
  std::atomic<uint64_t> slots;
  std::atomic<uint64_t> first;         // Number of this run's first record.
  std::atomic<uint64_t> attempted;     // Records begun, this run and earlier: the number of the newest, plus one.
  std::atomic<uint64_t> acknowledged;  // Records durable, likewise.
  std::atomic<uint64_t> failed;        // errno that ended the run.
  std::atomic<uint64_t> acknowledged_at_ns[kHistory];  // Of record N: at N % kHistory.
};

int Write(const std::string& path, const std::string& state_path, uint64_t slots) {
  int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) Die(path);
  const RecordFile before = ReadRecords(path);
  uint64_t number = before.empty ? 0 : before.newest + 1;
  State* state = CreateShared<State>(state_path);
  state->slots = slots;
  state->first = number;
  state->attempted = number;
  state->acknowledged = number;
  state->pid = getpid();
  for (;; ++number) {
    const Record record = MakeRecord(number, slots, BoottimeNs());
    state->attempted = number + 1;
    if (pwrite(fd, &record, sizeof(record), number % slots * kRecordSize) != sizeof(record) || fsync(fd) != 0) {
      state->failed = errno;
      Die(path);
    }
    state->acknowledged_at_ns[number % kHistory] = BoottimeNs();
    state->acknowledged = number + 1;
  }
}

struct Gap {
  uint64_t length_ns = 0;
  uint64_t ended_ns = 0;
};

// The longest time without an acknowledgement that ended after `since_ns`, the one that has not ended yet included.
Gap LongestGap(const State& state, uint64_t oldest, uint64_t acknowledged, uint64_t since_ns) {
  Gap longest;
  for (uint64_t number = oldest + 1; number <= acknowledged; ++number) {
    const bool open = number == acknowledged;
    const uint64_t end = open ? BoottimeNs() : state.acknowledged_at_ns[number % kHistory].load();
    const uint64_t begin = std::max(state.acknowledged_at_ns[(number - 1) % kHistory].load(), since_ns);
    if (end > begin && end - begin > longest.length_ns) longest = {end - begin, end};
  }
  return longest;
}

int Report(const std::string& state_path, uint64_t since_ns, uint64_t at_ns) {
  const State& state = *OpenShared<State>(state_path);
  const uint64_t acknowledged = state.acknowledged;
  const uint64_t attempted = state.attempted;
  // The writer goes on meanwhile and replaces the oldest part of the history: leave a margin.
  const uint64_t margin = kHistory - kHistory / 16;
  const uint64_t oldest = std::max(state.first.load(), acknowledged > margin ? acknowledged - margin : 0);
  const Gap gap = oldest < acknowledged ? LongestGap(state, oldest, acknowledged, since_ns) : Gap();
  std::printf("{\"running\": %s, \"failed\": %" PRIu64 ", \"slots\": %" PRIu64 ", \"first\": %" PRIu64
              ", \"acknowledged\": %" PRIu64 ", \"attempted\": %" PRIu64,
              IsRunning(state.pid), state.failed.load(), state.slots.load(), state.first.load(), acknowledged,
              attempted);
  std::printf(", \"longest_gap_ns\": %" PRIu64 ", \"longest_gap_ended_ns\": %" PRIu64 ", \"now_ns\": %" PRIu64,
              gap.length_ns, gap.ended_ns, BoottimeNs());
  if (at_ns != 0) {
    uint64_t count = acknowledged;
    while (count > oldest && state.acknowledged_at_ns[(count - 1) % kHistory] > at_ns) --count;
    std::printf(", \"acknowledged_at\": %" PRIu64 ", \"acknowledged_at_known\": %s", count,
                count > oldest ? "true" : "false");
  }
  std::printf("}\n");
  return 0;
}

int Verify(const std::string& path) {
  const RecordFile file = ReadRecords(path);
  const uint64_t count = file.empty ? 0 : file.newest + 1;
  std::printf("{\"records\": %" PRIu64 ", \"oldest\": %" PRIu64 ", \"newest_written_at_ns\": %" PRIu64
              ", \"unfinished\": %s, \"damaged\": %" PRIu64 ", \"first_damaged_slot\": %" PRIu64 "}\n",
              count, file.oldest, file.newest_written_at_ns, file.unfinished ? "true" : "false", file.damaged,
              file.first_damaged_slot);
  return file.damaged == 0 ? 0 : 1;
}

}  // namespace
}  // namespace still::guest

int main(int argc, char** argv) {
  using namespace still::guest;
  const std::string state = Option(argc, argv, "--state", "/run/record-writer");
  if (Flag(argc, argv, "--report")) {
    return Report(state, NumberOption(argc, argv, "--since", 0), NumberOption(argc, argv, "--at", 0));
  }
  if (Flag(argc, argv, "--verify")) return Verify(Option(argc, argv, "--verify", ""));
  return Write(Option(argc, argv, "--file", "/data/records"), state,
               NumberOption(argc, argv, "--slots", kDefaultSlots));
}
