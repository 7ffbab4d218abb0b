// gap-meter: the longest times for which the guest could not run, and could not write. The first is what a pause looks
// like from inside (as far as the guest's clock shows it), the second is what a freeze looks like.
//
//   gap-meter [--state F] [--file F]
//   gap-meter --report [--state F] [--since NS]   as JSON; only gaps that ended after NS (CLOCK_BOOTTIME)
#include <algorithm>
#include <cinttypes>
#include <thread>

#include "tests/guest/program.h"

namespace still::guest {
namespace {

constexpr uint64_t kStepNs = 2 * 1000 * 1000;      // How often each meter comes round.
constexpr uint64_t kNotableNs = 10 * 1000 * 1000;  // Gaps from here on are remembered.
constexpr uint64_t kHistory = 1024;

struct Meter {
  std::atomic<uint64_t> steps;
  std::atomic<uint64_t> step_began_ns;
  std::atomic<uint64_t> gaps;
  std::atomic<uint64_t> length_ns[kHistory];  // Of gap N: at N % kHistory.
  std::atomic<uint64_t> ended_ns[kHistory];
};

struct State {
  std::atomic<uint64_t> pid;
  Meter schedule;
  Meter write;
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
    if (ended - began >= kNotableNs) {
      const uint64_t number = meter->gaps;
      meter->length_ns[number % kHistory] = ended - began;
      meter->ended_ns[number % kHistory] = ended;
      meter->gaps = number + 1;
    }
    meter->steps.fetch_add(1);
  }
}

int Measure(const std::string& state_path, const std::string& path) {
  int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) Die(path);
  State* state = CreateShared<State>(state_path);
  state->pid = getpid();
  std::thread schedule([state] { Run(&state->schedule, [] {}); });
  // Not synced: a plain write waits for nothing but a frozen file system.
  Run(&state->write, [&] {
    const uint64_t now = BoottimeNs();
    if (pwrite(fd, &now, sizeof(now), 0) != sizeof(now)) Die(path);
  });
}

void Print(const char* name, const Meter& meter, uint64_t since_ns) {
  const uint64_t gaps = meter.gaps;
  const uint64_t now = BoottimeNs();
  // The step under way counts too: a writer that is stuck has not ended its gap.
  uint64_t longest = now - std::min(now, std::max(meter.step_began_ns.load(), since_ns));
  uint64_t ended = now;
  uint64_t notable = 0;
  for (uint64_t number = gaps - std::min(gaps, kHistory); number < gaps; ++number) {
    const uint64_t gap_ended = meter.ended_ns[number % kHistory];
    const uint64_t length = meter.length_ns[number % kHistory];
    if (gap_ended <= since_ns) continue;
    ++notable;
    if (length > longest) {
      longest = length;
      ended = gap_ended;
    }
  }
  std::printf("\"%s\": {\"longest_ns\": %" PRIu64 ", \"ended_ns\": %" PRIu64 ", \"notable\": %" PRIu64
              ", \"steps\": %" PRIu64 "}, ",
              name, longest, ended, notable, meter.steps.load());
}

int Report(const std::string& state_path, uint64_t since_ns) {
  const State& state = *OpenShared<State>(state_path);
  std::printf("{");
  Print("schedule", state.schedule, since_ns);
  Print("write", state.write, since_ns);
  std::printf("\"running\": %s, \"now_ns\": %" PRIu64 "}\n", IsRunning(state.pid), BoottimeNs());
  return 0;
}

}  // namespace
}  // namespace still::guest

int main(int argc, char** argv) {
  using namespace still::guest;
  const std::string state = Option(argc, argv, "--state", "/run/gap-meter");
  if (Flag(argc, argv, "--report")) return Report(state, NumberOption(argc, argv, "--since", 0));
  return Measure(state, Option(argc, argv, "--file", "/data/gap-meter"));
}
