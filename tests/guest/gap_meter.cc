// gap-meter: for how long the guest could not run, could not write to a file, and could not write to its memory. The
// first is what a pause looks like from inside (as far as the guest's clock shows it), the second what a freeze looks
// like, the third what it costs to write to a page that a snapshot has yet to save.
//
//   gap-meter [--state F] [--file F]
//   gap-meter --report [--state F] [--since NS] [--until NS]   as JSON; only steps that ended in that time (CLOCK_BOOTTIME)
//
// Each meter steps all the time. "longest_ns" is the longest step, "late_p50_ns" and "late_p99_ns" are how late steps
// were, beyond the time for which they wanted to sleep.
#include <algorithm>
#include <cinttypes>
#include <thread>
#include <vector>

#include "tests/guest/program.h"

namespace still::guest {
namespace {

constexpr uint64_t kStepNs = 2 * 1000 * 1000;      // How often each meter comes round.
constexpr uint64_t kNotableNs = 10 * 1000 * 1000;  // Steps from here on are gaps.
constexpr uint64_t kHistory = 1 << 15;             // Steps that are remembered: more than a minute's.
constexpr uint64_t kPage = 4096;
constexpr uint64_t kPages = 1 << 13;  // As many steps in a row meet pages that no snapshot under way has saved yet.

struct Meter {
  std::atomic<uint64_t> steps;
  std::atomic<uint64_t> step_began_ns;
  std::atomic<uint64_t> length_ns[kHistory];  // Of step N: at N % kHistory.
  std::atomic<uint64_t> ended_ns[kHistory];
};

struct State {
  std::atomic<uint64_t> pid;
  Meter schedule;
  Meter write;
  Meter memory;
};

// Steps for ever; `act` is what a step does besides sleeping.
template <typename Act>
[[noreturn]] void Run(Meter* meter, Act act) {
  for (;;) {
    const uint64_t began = BoottimeNs();
    meter->step_began_ns = began;
    SleepNs(kStepNs);
    act();
    const uint64_t ended = BoottimeNs();
    const uint64_t number = meter->steps;
    meter->length_ns[number % kHistory] = ended - began;
    meter->ended_ns[number % kHistory] = ended;
    meter->steps = number + 1;
  }
}

int Measure(const std::string& state_path, const std::string& path) {
  int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) Die(path);
  State* state = CreateShared<State>(state_path);
  state->pid = getpid();
  std::thread schedule([state] { Run(&state->schedule, [] {}); });
  std::thread memory([state] {
    std::vector<char> pages(kPages * kPage);
    uint64_t next = 0;
    Run(&state->memory, [&] {
      volatile char* byte = &pages[next++ % kPages * kPage];
      *byte = static_cast<char>(*byte + 1);
    });
  });
  // Not synced: a plain write waits for nothing but a frozen file system.
  Run(&state->write, [&] {
    const uint64_t now = BoottimeNs();
    if (pwrite(fd, &now, sizeof(now), 0) != sizeof(now)) Die(path);
  });
}

uint64_t Percentile(std::vector<uint64_t>& sorted, uint64_t hundredths) {
  return sorted.empty() ? 0 : sorted[std::min(sorted.size() - 1, sorted.size() * hundredths / 100)];
}

void Print(const char* name, const Meter& meter, uint64_t since_ns, uint64_t until_ns) {
  const uint64_t steps = meter.steps;
  const uint64_t now = std::min(BoottimeNs(), until_ns);
  // The step under way counts too: a writer that is stuck has not ended its gap.
  uint64_t longest = now - std::min(now, std::max(meter.step_began_ns.load(), since_ns));
  uint64_t ended = now;
  uint64_t notable = 0;
  std::vector<uint64_t> late;
  for (uint64_t number = steps - std::min(steps, kHistory); number < steps; ++number) {
    const uint64_t step_ended = meter.ended_ns[number % kHistory];
    const uint64_t length = meter.length_ns[number % kHistory];
    if (step_ended <= since_ns || step_ended > until_ns) continue;
    if (length >= kNotableNs) ++notable;
    late.push_back(length - std::min(length, kStepNs));
    if (length > longest) {
      longest = length;
      ended = step_ended;
    }
  }
  std::sort(late.begin(), late.end());
  std::printf("\"%s\": {\"longest_ns\": %" PRIu64 ", \"ended_ns\": %" PRIu64 ", \"notable\": %" PRIu64
              ", \"late_p50_ns\": %" PRIu64 ", \"late_p99_ns\": %" PRIu64 ", \"measured\": %zu, \"steps\": %" PRIu64
              "}, ",
              name, longest, ended, notable, Percentile(late, 50), Percentile(late, 99), late.size(), steps);
}

int Report(const std::string& state_path, uint64_t since_ns, uint64_t until_ns) {
  const State& state = *OpenShared<State>(state_path);
  std::printf("{");
  Print("schedule", state.schedule, since_ns, until_ns);
  Print("write", state.write, since_ns, until_ns);
  Print("memory", state.memory, since_ns, until_ns);
  std::printf("\"running\": %s, \"now_ns\": %" PRIu64 "}\n", IsRunning(state.pid), BoottimeNs());
  return 0;
}

}  // namespace
}  // namespace still::guest

int main(int argc, char** argv) {
  using namespace still::guest;
  const std::string state = Option(argc, argv, "--state", "/run/gap-meter");
  if (Flag(argc, argv, "--report")) {
    return Report(state, NumberOption(argc, argv, "--since", 0), NumberOption(argc, argv, "--until", UINT64_MAX));
  }
  return Measure(state, Option(argc, argv, "--file", "/data/gap-meter"));
}
